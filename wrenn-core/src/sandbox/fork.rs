//! Copies of a running sandbox.

use std::time::Instant;

use wrenn_snapshot::Generation;

use crate::error::Result;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::many::{Sandboxes, check_count};
use crate::sandbox::request::Request;
use crate::sandbox::start::Origin;

impl Sandbox {
    /// Makes `count` copies of the running sandbox, 1 to 1,000, and returns them when all have started or failed.
    /// [`fork_stream`](Self::fork_stream) hands over each as soon as it is ready.
    ///
    /// Each copy has its own identity, clock, randomness and token, and the same memory and files. The sandbox goes on: its
    /// memory is copied while it runs, and it stands still only while the rest of its memory, its devices and its drive are
    /// copied ([`save_report`](Self::save_report) tells for how long), however many copies are made. A time-to-live of the
    /// sandbox holds for each child, and counts from the child's start.
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
    /// The outer error tells that no copy was made: [`Error::InvalidInput`](crate::Error::InvalidInput) for another
    /// `count`, otherwise as [`pause`](Self::pause). The inner result of each child tells whether that child started, with
    /// the errors of [`PausedSandbox::resume`](crate::PausedSandbox::resume).
    ///
    /// # Cancel-Safety
    /// The capture of a fork that has begun goes on; children that were not handed over are undone.
    pub async fn fork(&self, count: usize) -> Result<Vec<Result<Self>>> {
        Ok(self.fork_stream(count).await?.all().await)
    }

    /// Makes `count` copies of the running sandbox as [`fork`](Self::fork) does, and hands over each as soon as it is ready.
    /// It returns when the sandbox has been captured and goes on; from then on the children do not need it.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// let mut children = sandbox.fork_stream(100).await?;
    /// while let Some(child) = children.next().await {
    ///     let child = child?;
    ///     tokio::spawn(async move { child.exec("make test").await });
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`fork`](Self::fork): the outer error is returned here, and the stream has a result for each child.
    ///
    /// # Cancel-Safety
    /// A capture that has begun goes on. Dropping the stream undoes the children that were not handed over.
    pub async fn fork_stream(&self, count: usize) -> Result<Sandboxes> {
        check_count("a fork of", count)?;
        let (generation, fixed) = self.request("be forked", Request::Fork).await?;
        let parent = self.id().clone();
        let origin = move || Origin::Forked(parent.clone());
        Ok(Sandboxes::start(self.registry(), generation, fixed, origin, count, Instant::now()))
    }

    /// Captures the running sandbox as a generation that has no name. The sandbox goes on, as at a fork.
    pub(crate) async fn capture(&self) -> Result<Generation> {
        let (generation, _inherited) = self.request("be captured", Request::Fork).await?;
        Ok(generation)
    }
}
