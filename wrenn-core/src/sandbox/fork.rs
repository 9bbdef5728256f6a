//! Copies of a running sandbox.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use wrenn_snapshot::Generation;

use crate::clock::unix_ms;
use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::request::Request;
use crate::sandbox::start::{Origin, start};
use crate::state::Fixed;

impl Sandbox {
    /// Makes `count` copies of the running sandbox, 1 to 20. Each copy has its own identity, clock, randomness and
    /// token, and the same memory and files. The sandbox goes on: its memory is copied while it runs, and it stands
    /// still only while the rest of its memory, its devices and its drive are copied
    /// ([`save_report`](Self::save_report) tells for how long). A time-to-live of the sandbox holds for each child, and
    /// counts from the child's start.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// for child in sandbox.fork(3).await? {
    ///     println!("{}", child?.exec("hostname").await?.stdout_utf8());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The outer error tells that no copy was made: [`Error::InvalidInput`] for another `count`, otherwise as
    /// [`pause`](Self::pause). The inner result of each child tells whether that child started, with the errors of
    /// [`PausedSandbox::resume`](crate::PausedSandbox::resume).
    ///
    /// # Cancel-Safety
    /// The capture of a fork that has begun goes on; children that were not handed over are undone.
    pub async fn fork(&self, count: usize) -> Result<Vec<Result<Self>>> {
        if !(1..=FORK_MAX).contains(&count) {
            return Err(Error::invalid(format!("a fork of {count}: ask for 1 to {FORK_MAX} children")));
        }
        let (generation, fixed) = self.request("be forked", Request::Fork).await?;
        let registry = self.registry();
        let captured = Instant::now();
        let children = (0..count).map(|_| {
            let (id, created_at_ms) = (SandboxId::random(), unix_ms());
            let fixed = Fixed { id, created_at_ms, published: Vec::new(), ..fixed.clone() };
            start(registry, generation.clone(), fixed, Origin::Forked(self.id().clone()), captured)
        });
        let children = join_all(children).await.into_iter();
        Ok(children.map(|child| Ok(Self::new(child?, Arc::clone(registry)))).collect())
    }

    /// Captures the running sandbox as a generation that has no name. The sandbox goes on, as at a fork.
    pub(crate) async fn capture(&self) -> Result<Generation> {
        let (generation, _inherited) = self.request("be captured", Request::Fork).await?;
        Ok(generation)
    }
}

/// The most that the E2B clients ask for.
const FORK_MAX: usize = 20;
