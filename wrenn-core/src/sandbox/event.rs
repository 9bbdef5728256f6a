//! What happens to the sandboxes of a host.

use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::id::{SandboxId, TemplateName};
use crate::state::Exit;

/// One thing that happened to a sandbox of this program, as [`Host::events`](crate::Host::events) tells it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct HostEvent {
    /// When, by this host's clock.
    pub at: SystemTime,
    /// To which sandbox.
    pub sandbox: SandboxId,
    /// What.
    #[serde(flatten)]
    pub kind: HostEventKind,
}

/// What happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum HostEventKind {
    /// It was created.
    Created {
        /// What it was created from.
        template: TemplateName,
    },
    /// It runs again after a pause.
    Resumed,
    /// It was made of a running one.
    Forked {
        /// The running one.
        parent: SandboxId,
    },
    /// It was kept as a template, and goes on.
    Snapshot {
        /// The new template.
        template: TemplateName,
    },
    /// Its time was over. What became of it follows.
    Expired,
    /// It was paused, and no longer runs.
    Paused,
    /// It no longer runs.
    Ended {
        /// Why.
        exit: Exit,
    },
}

/// Where events go. Who listens too slowly misses the oldest.
#[derive(Debug)]
pub(crate) struct Events(broadcast::Sender<HostEvent>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(EVENTS_KEPT).0)
    }
}

impl Events {
    pub(super) fn tell(&self, sandbox: &SandboxId, kind: HostEventKind) {
        // Without a listener there is nobody to tell.
        let _ = self.0.send(HostEvent { at: SystemTime::now(), sandbox: sandbox.clone(), kind });
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<HostEvent> {
        self.0.subscribe()
    }
}

/// An event takes some hundred bytes.
const EVENTS_KEPT: usize = 1024;
