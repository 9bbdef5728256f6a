//! The end of a host: nothing starts any more, and what runs is paused or killed.

use std::sync::Arc;

use futures::future::join_all;

use crate::error::Error;
use crate::host::handle::Host;
use crate::id::SandboxId;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::shared::Shared;

/// What becomes of the sandboxes that run when a host is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Running {
    /// They are paused: any program that opens the data directory can resume them.
    Pause,
    /// They are killed, and nothing of them is kept.
    Kill,
}

impl Host {
    /// Ends everything that this program runs: from now on nothing is created, resumed or forked here, and what runs is
    /// paused or killed, all at once. Returns when that is done, with those that could not be; those go on, and end with
    /// the program.
    ///
    /// # Cancel-Safety
    /// Pauses and kills that have begun go on. Nothing starts any more all the same.
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
            // It ended by itself meanwhile.
            Err(Error::InvalidState { .. } | Error::VmEnded { .. }) if sandbox.is_over() => None,
            Err(error) => Some((sandbox.id().clone(), error)),
        }
    }
}
