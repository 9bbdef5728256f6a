//! The sandbox that a stream is in, which may be paused and resumed meanwhile.

use std::time::Duration;

use tokio::time::timeout;
use wrenn_core::{Error, Sandbox, SandboxState};

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::service::error::ServiceError;

/// The sandbox that a stream is in.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) context: Context,
    pub(super) owner: String,
    pub(super) id: String,
}

impl Place {
    /// The sandbox, if it runs.
    pub(super) async fn running(&self) -> Result<Sandbox, Refused> {
        Ok(self.find().await?)
    }

    /// The sandbox that was paused, as soon as it runs again.
    ///
    /// # Errors
    /// It is over, or the server is about to be.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub(super) async fn again(&self) -> Result<Sandbox, Refused> {
        loop {
            let resumed = self.context.sandboxes.changed();
            match self.find().await {
                Ok(sandbox) if sandbox.state() != SandboxState::Paused => return Ok(sandbox),
                _ if self.context.sandboxes.is_closing() => return Err(ServiceError::Closing.into()),
                // It is paused still, or records that are busy say nothing of it.
                Ok(_) | Err(ServiceError::Store(_)) => {}
                Err(ServiceError::Sandbox(error)) if is_paused(&error) => {}
                Err(error) => return Err(error.into()),
            }
            timeout(ASKED_EACH, resumed).await.ok();
        }
    }

    async fn find(&self) -> Result<Sandbox, ServiceError> {
        self.context.sandboxes.running(&self.owner, &self.id, "run a command").await
    }
}

/// Whether something failed since the sandbox is paused.
pub(super) fn is_paused(error: &Error) -> bool {
    matches!(error, Error::InvalidState { state: SandboxState::Paused, .. })
}

/// Where nobody tells of a resume, such as at the server's end.
const ASKED_EACH: Duration = Duration::from_millis(200);
