//! What all handles of a running sandbox share.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::agent::client::AgentClient;
use crate::sandbox::request::Request;
use crate::state::{Fixed, SandboxInfo, SandboxState};

/// Its last owner's end is the sandbox's end: the task's inbox closes.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) fixed: Fixed,
    pub(super) agent: Arc<AgentClient>,
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) state: watch::Receiver<SandboxState>,
}

impl Shared {
    /// All that is known of the sandbox.
    pub(super) fn info(&self) -> SandboxInfo {
        self.fixed.info(*self.state.borrow())
    }
}
