//! Work on a sandbox for as long as it runs.

use std::time::Duration;

use tokio::sync::watch;
use tracing::Instrument as _;

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::state::{Exit, Life, SandboxState};

/// A watch of a sandbox's end, which does not keep the sandbox alive.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    id: SandboxId,
    life: watch::Receiver<Life>,
}

impl Watch {
    pub(super) fn new(id: SandboxId, life: watch::Receiver<Life>) -> Self {
        Self { id, life }
    }

    /// Does `work` while the sandbox runs, and fails at once, with the reason, when the sandbox no longer runs.
    pub(crate) async fn while_running<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let span = tracing::debug_span!("call", sandbox = %self.id, operation);
        self.alive(operation, work).instrument(span).await
    }

    async fn alive<T>(&self, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        if is_over(&self.life.borrow()) {
            return Err(self.refusal(operation));
        }
        tokio::select! {
            result = work => match result {
                // The connection may break a moment before the end of the VM is known. The end is then the better
                // reason.
                Err(Error::Agent { source, what }) if source.is_retryable() => {
                    match tokio::time::timeout(END_GRACE, self.over()).await {
                        Ok(()) => Err(self.refusal(operation)),
                        Err(_elapsed) => Err(Error::Agent { what, source }),
                    }
                }
                result => result,
            },
            () = self.over() => Err(self.refusal(operation)),
        }
    }

    /// Waits until the sandbox no longer runs.
    pub(crate) async fn over(&self) {
        // The channel closes without an end only where the task has panicked, and then the sandbox is over too.
        let _ = self.life.clone().wait_for(is_over).await;
    }

    /// Waits until the sandbox no longer runs, and returns the reason.
    pub(super) async fn exit(&self) -> Exit {
        self.over().await;
        self.life.borrow().exit.clone().unwrap_or_else(lost)
    }

    /// Why the sandbox cannot do `operation`: the end of its machine where that is the reason, else its state.
    pub(super) fn refusal(&self, operation: &'static str) -> Error {
        let gone = self.life.has_changed().is_err();
        let Life { state, exit } = self.life.borrow().clone();
        match exit.or_else(|| gone.then(lost)) {
            Some(Exit::VmEnded { exit, console }) => Error::VmEnded { during: operation, exit, console },
            exit => {
                let state = if gone && state != SandboxState::Paused { SandboxState::Ended } else { state };
                Error::InvalidState { id: self.id.clone(), operation, state, exit }
            }
        }
    }
}

fn is_over(life: &Life) -> bool {
    matches!(life.state, SandboxState::Paused | SandboxState::Ended)
}

/// The reason where the sandbox's task has panicked, which ended the machine too.
fn lost() -> Exit {
    Exit::Broken { error: "its task panicked".to_owned(), console: String::new() }
}

const END_GRACE: Duration = Duration::from_millis(500);
