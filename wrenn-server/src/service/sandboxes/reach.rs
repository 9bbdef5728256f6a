//! Requests to the ports of sandboxes, which know an id and no key.

use std::sync::Arc;

use wrenn_core::{Sandbox, SandboxId, SandboxState};

use crate::service::error::ServiceError;
use crate::service::sandboxes::{Sandboxes, lock};
use crate::store::records::{SandboxRecord, Status};

/// A sandbox that can be connected to.
#[derive(Debug, Clone)]
pub struct Reached {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What was asked for.
    pub record: Arc<SandboxRecord>,
}

impl Sandboxes {
    /// One that runs, or that is resumed for this since it was asked to be; `None` if there is none.
    ///
    /// # Errors
    /// [`ServiceError::Store`], and those of a resume.
    ///
    /// # Cancel-Safety
    /// A resume goes on.
    pub async fn reach(self: &Arc<Self>, id: &SandboxId) -> Result<Option<Reached>, ServiceError> {
        if let Some(reached) = self.reached(id) {
            return Ok(Some(reached));
        }
        let Some(record) = self.store.sandbox(id).await? else { return Ok(None) };
        // What says that it is running is being paused.
        if !record.asked.wakes || !matches!(record.status, Status::Running | Status::Paused) {
            return Ok(self.reached(id));
        }
        match self.resume_unless_running(record, None).await {
            Ok(_) => Ok(self.reached(id)),
            Err(ServiceError::Over { .. } | ServiceError::NoSandbox { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ids of those that run.
    #[must_use]
    pub fn running_ids(&self) -> Vec<SandboxId> {
        lock(&self.running).keys().cloned().collect()
    }

    /// Waits until one runs, whoever resumes it; `None` once it is over, or the server ends.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn runs_again(&self, id: &SandboxId) -> Option<Reached> {
        loop {
            let changed = self.changed.notified();
            if let Some(reached) = self.reached(id) {
                return Some(reached);
            }
            if self.is_closing() {
                return None;
            }
            match self.store.sandbox(id).await {
                Ok(Some(record)) if matches!(record.status, Status::Stopped | Status::Error) => return None,
                Ok(None) => return None,
                // Records that cannot be read say nothing.
                Ok(Some(_)) | Err(_) => {}
            }
            // Where nobody tells, such as another program's resume.
            tokio::time::timeout(LOOKED_EACH, changed).await.ok();
        }
    }

    /// One that runs.
    #[must_use]
    pub fn reached(&self, id: &SandboxId) -> Option<Reached> {
        let kept = self.kept(id)?;
        let is_over = matches!(kept.sandbox.state(), SandboxState::Paused | SandboxState::Ended);
        (!is_over).then_some(Reached { sandbox: kept.sandbox, record: kept.record })
    }
}

const LOOKED_EACH: std::time::Duration = std::time::Duration::from_secs(1);
