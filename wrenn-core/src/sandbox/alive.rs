//! Work on a sandbox for as long as it runs.

use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::state::SandboxState;

/// Who wants to know of a sandbox's end, without keeping it alive.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    id: SandboxId,
    state: watch::Receiver<SandboxState>,
}

impl Watch {
    pub(super) fn new(id: SandboxId, state: watch::Receiver<SandboxState>) -> Self {
        Self { id, state }
    }

    /// Does `work` if the sandbox runs, and fails at once when it no longer does.
    pub(crate) async fn while_running<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let refused = |state| Error::InvalidState { id: self.id.clone(), operation, state, exit: None };
        let now = *self.state.borrow();
        if is_over(&now) {
            return Err(refused(now));
        }
        let (mut state, mut later) = (self.state.clone(), self.state.clone());
        tokio::select! {
            result = work => match result {
                // The connection may break a moment before the end of the VM is known: the end is the better reason.
                Err(Error::Agent { source, what }) if source.is_retryable() => {
                    match tokio::time::timeout(END_GRACE, over(&mut later)).await {
                        Ok(state) => Err(refused(state)),
                        Err(_elapsed) => Err(Error::Agent { what, source }),
                    }
                }
                result => result,
            },
            state = over(&mut state) => Err(refused(state)),
        }
    }
}

fn is_over(state: &SandboxState) -> bool {
    matches!(state, SandboxState::Paused | SandboxState::Ended)
}

/// Waits until the sandbox no longer runs.
async fn over(state: &mut watch::Receiver<SandboxState>) -> SandboxState {
    state.wait_for(is_over).await.map_or(SandboxState::Ended, |state| *state)
}

const END_GRACE: Duration = Duration::from_millis(500);
