//! What all handles of a running sandbox share.

use std::sync::{Arc, Weak};
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use wrenn_net::Egress;

use crate::agent::client::AgentClient;
use crate::error::Error;
use crate::network::publish::Publications;
use crate::sandbox::alive::Watch;
use crate::sandbox::countdown::Countdown;
use crate::sandbox::request::{Reply, Request};
use crate::state::{Fixed, Life, SandboxInfo, SandboxState};
use crate::vmm::console::Console;

/// What all handles of a sandbox share. When the last owner drops it, the task's inbox closes, and the sandbox ends.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) fixed: Fixed,
    pub(super) agent: Arc<AgentClient>,
    pub(super) console: Console,
    pub(super) vmm_pid: u32,
    /// Gone once the sandbox no longer runs.
    pub(super) egress: Weak<Egress>,
    pub(super) published: Arc<Publications>,
    /// The requests, which are served one after another.
    pub(super) requests: mpsc::Sender<Request>,
    /// The kills, which are served before everything else, whatever the task does.
    pub(super) kills: mpsc::UnboundedSender<Reply<()>>,
    pub(super) countdown: watch::Sender<Countdown>,
    pub(super) life: watch::Receiver<Life>,
}

impl Shared {
    pub(super) fn state(&self) -> SandboxState {
        self.life.borrow().state
    }

    /// Whether the sandbox no longer runs.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state(), SandboxState::Paused | SandboxState::Ended)
    }

    /// The sandbox's properties and state.
    pub(super) fn info(&self) -> SandboxInfo {
        let info = self.fixed.info(self.state());
        let last_used = self.last_used();
        let expires_at = self.countdown.borrow().ends_at_time(last_used);
        SandboxInfo { expires_at, last_used_at: SystemTime::now().checked_sub(last_used.elapsed()), ..info }
    }

    fn last_used(&self) -> Instant {
        self.agent.last_used()
    }

    pub(super) fn watch(&self) -> Watch {
        Watch::new(self.fixed.id.clone(), self.life.clone())
    }

    /// The error for an `operation` that the sandbox cannot do.
    pub(super) fn refusal(&self, operation: &'static str) -> Error {
        self.watch().refusal(operation)
    }
}
