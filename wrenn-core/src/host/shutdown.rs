//! The end of a host: no sandbox starts any more, and the running ones are paused or killed.

use std::sync::Arc;

use futures::future::join_all;

use crate::error::Error;
use crate::host::handle::Host;
use crate::id::SandboxId;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::shared::Shared;

/// What becomes of the running sandboxes when a host is shut down.
///
/// ```no_run
/// # async fn demo(host: wrenn_core::Host) {
/// let unpaused = host.shutdown(wrenn_core::Running::Pause).await;
/// assert!(unpaused.is_empty(), "{unpaused:?}");
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Running {
    /// The sandboxes are paused: any program that opens the data directory can resume them.
    Pause,
    /// The sandboxes are killed, and nothing of them is kept.
    Kill,
}

impl Host {
    /// Pauses or kills all sandboxes that this program runs, at the same time. From the call on, every create, resume
    /// and fork of this host fails, and the published ports of paused sandboxes are closed. The answer names the
    /// sandboxes that could not be paused or killed, each with the error. Those go on running, and end with the program.
    ///
    /// # Cancel-Safety
    /// Cancelling does not stop the pauses and kills that have begun, and the host stays closed.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) {
    /// for (id, error) in host.shutdown(wrenn_core::Running::Pause).await {
    ///     eprintln!("{id} is not paused: {error}");
    /// }
    /// # }
    /// ```
    pub async fn shutdown(&self, running: Running) -> Vec<(SandboxId, Error)> {
        self.0.close();
        self.0.sleepers.close().await;
        let ends = self.0.all().into_iter().map(|shared| self.end(shared, running));
        join_all(ends).await.into_iter().flatten().collect()
    }

    async fn end(&self, shared: Arc<Shared>, running: Running) -> Option<(SandboxId, Error)> {
        let sandbox = Sandbox::new(shared, Arc::clone(&self.0));
        let ended = match running {
            Running::Pause => sandbox.pause().await.map(drop),
            Running::Kill => sandbox.kill().await,
        };
        match ended {
            Ok(()) => None,
            // The sandbox ended by itself in the meantime.
            Err(Error::InvalidState { .. } | Error::VmEnded { .. }) if sandbox.is_over() => None,
            Err(error) => Some((sandbox.id().clone(), error)),
        }
    }
}
