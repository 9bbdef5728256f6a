//! Many sandboxes of one generation, each handed over when it is ready.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::Stream;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinError, JoinSet};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;
use wrenn_snapshot::Generation;

use crate::clock::unix_ms;
use crate::error::{Error, Result};
use crate::guest::restore::Asking;
use crate::id::SandboxId;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::start::{Origin, start};
use crate::state::Fixed;

/// Sandboxes that are being started, which [`Sandbox::fork_stream`] and
/// [`SandboxBuilder::create_many`](crate::SandboxBuilder::create_many) return. Each is handed over as soon as it is ready,
/// in whatever order they become so; the result of each tells whether it started, and one that fails does not hinder the
/// others.
///
/// They start by themselves, whether or not anybody waits for the next one, and a few at once:
/// [`HostBuilder::starts_at_once`](crate::HostBuilder::starts_at_once) has how many.
///
/// It is a [`Stream`], too. Dropping it undoes those that were not handed over.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let mut children = sandbox.fork_stream(100).await?;
/// while let Some(child) = children.next().await {
///     println!("{}", child?.exec("hostname").await?.stdout_utf8());
/// }
/// # Ok(()) }
/// ```
#[must_use = "the sandboxes that were not taken from it are undone when it is dropped"]
pub struct Sandboxes {
    ready: UnboundedReceiver<Result<Sandbox>>,
    left: usize,
    _starting: AbortOnDropHandle<()>,
}

impl fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandboxes").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Sandboxes {
    /// Begins to start `count` sandboxes of a generation. They have the properties that `fixed` says, but an id and a
    /// beginning of their own. `asked` is when the caller asked for the first of them.
    pub(crate) fn start(
        registry: &Arc<Registry>,
        generation: Generation,
        fixed: Fixed,
        origin: impl Fn() -> Origin + Send + 'static,
        count: usize,
        asked: Instant,
    ) -> Self {
        let (tell, ready) = mpsc::unbounded_channel();
        let batch = Batch { registry: Arc::clone(registry), generation, fixed, asking: Asking::loaded(asked) };
        let starting = tokio::spawn(batch.start_all(count, origin, tell).in_current_span());
        Self { ready, left: count, _starting: AbortOnDropHandle::new(starting) }
    }

    /// The next one that is ready, or why one did not start. `None` once there was a result for each.
    ///
    /// # Errors
    /// As [`PausedSandbox::resume`](crate::PausedSandbox::resume), for the one that did not start.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// let mut sandboxes = wrenn_core::Sandbox::builder(host, "base").create_many(8).await?;
    /// let first = sandboxes.next().await;
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Option<Result<Sandbox>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// How many results have not been taken yet.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// assert_eq!(sandbox.fork_stream(8).await?.left(), 8);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// All that are left, in the order in which they became ready.
    pub(crate) async fn all(mut self) -> Vec<Result<Sandbox>> {
        let mut all = Vec::with_capacity(self.left);
        while let Some(one) = self.next().await {
            all.push(one);
        }
        all
    }
}

impl Stream for Sandboxes {
    type Item = Result<Sandbox>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let one = ready!(self.ready.poll_recv(context));
        self.left -= 1;
        // Nothing is told any more where the program's runtime is shut down.
        Poll::Ready(Some(one.unwrap_or_else(|| Err(Error::failed(WHAT)("the runtime was shut down".into())))))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Refuses to make none, or more than anybody can want.
pub(crate) fn check_count(what: &str, count: usize) -> Result<()> {
    if (1..=COUNT_MAX).contains(&count) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} {count}: ask for 1 to {COUNT_MAX}, and again for more")))
}

/// What the sandboxes have in common.
struct Batch {
    registry: Arc<Registry>,
    generation: Generation,
    fixed: Fixed,
    asking: Asking,
}

impl Batch {
    /// Starts so many, and tells of each. No more of them wait for their turn than there are turns, so that others who ask
    /// meanwhile need not wait for all of these.
    async fn start_all(self, count: usize, origin: impl Fn() -> Origin, tell: UnboundedSender<Result<Sandbox>>) {
        let (mut starting, mut left) = (JoinSet::new(), count);
        loop {
            while left > 0 && starting.len() < self.registry.turns.at_once() {
                starting.spawn(self.start_one(origin()).in_current_span());
                left -= 1;
            }
            let Some(started) = starting.join_next().await else { return };
            // Where nobody listens, this task is about to be ended.
            let _ = tell.send(started.unwrap_or_else(|error| Err(panicked(error))));
        }
    }

    fn start_one(&self, origin: Origin) -> impl Future<Output = Result<Sandbox>> + Send + 'static {
        let fixed =
            Fixed { id: SandboxId::random(), created_at_ms: unix_ms(), published: Vec::new(), ..self.fixed.clone() };
        let (registry, generation, asking) = (Arc::clone(&self.registry), self.generation.clone(), self.asking);
        async move {
            let shared = start(&registry, generation, fixed, origin, asking).await?;
            Ok(Sandbox::new(shared, registry))
        }
    }
}

fn panicked(error: JoinError) -> Error {
    Error::failed(WHAT)(error.into())
}

const WHAT: &str = "start one of many sandboxes";
/// A thousand of the smallest guests have 128 GiB.
const COUNT_MAX: usize = 1000;
