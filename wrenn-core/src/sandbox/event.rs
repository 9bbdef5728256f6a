//! The events of a host's sandboxes, and the channel on which they are sent.

use std::net::SocketAddr;
use std::time::SystemTime;

use tokio::sync::broadcast;

use crate::id::{SandboxId, TemplateName};
use crate::state::Exit;

/// One event of a sandbox of this program, as [`Host::events`](crate::Host::events) tells it.
///
/// It serializes as an object of `at`, `sandbox`, and the fields of [`HostEventKind`], of which `event` names the kind.
///
/// ```
/// fn line(event: &wrenn_core::HostEvent) -> Result<String, serde_json::Error> {
///     serde_json::to_string(event)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct HostEvent {
    /// When it happened, by this host's clock.
    pub at: SystemTime,
    /// The sandbox that it happened to.
    pub sandbox: SandboxId,
    /// What happened.
    #[serde(flatten)]
    pub kind: HostEventKind,
}

/// What happened to a sandbox.
///
/// ```
/// use wrenn_core::{Exit, HostEventKind};
///
/// let kind = HostEventKind::Ended { exit: Exit::Killed };
/// assert_eq!(serde_json::to_string(&kind)?, r#"{"event":"ended","exit":{"why":"killed"}}"#);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum HostEventKind {
    /// The sandbox was created.
    Created {
        /// The template that the sandbox was created from.
        template: TemplateName,
    },
    /// The sandbox runs again after a pause.
    Resumed,
    /// The sandbox was made as a copy of a running one.
    Forked {
        /// The sandbox that was copied.
        parent: SandboxId,
    },
    /// What the sandbox would go on from after a crash was kept, and it goes on.
    Checkpointed,
    /// A template was made of the sandbox, which goes on.
    Snapshot {
        /// The new template.
        template: TemplateName,
    },
    /// The time-to-live of the sandbox ended. [`Paused`](Self::Paused) or [`Ended`](Self::Ended) follows.
    Expired,
    /// The sandbox was paused.
    Paused,
    /// A connection to a published port wakes the paused sandbox: see
    /// [`PublishOptions::wake`](crate::PublishOptions::wake). [`Resumed`](Self::Resumed) or
    /// [`WakeFailed`](Self::WakeFailed) follows.
    Woken {
        /// The address of the host's that was connected to.
        address: SocketAddr,
    },
    /// A connection could not wake the sandbox, which stays paused. Its connections were reset. Those that come within a
    /// second are reset too, or within up to half a minute after several failures.
    WakeFailed {
        /// Why it was not resumed.
        error: String,
    },
    /// The sandbox no longer runs, and was not paused.
    Ended {
        /// Why it no longer runs.
        exit: Exit,
    },
}

/// The channel on which events are sent. A listener that is too slow misses the oldest. Clones are the same channel.
#[derive(Debug, Clone)]
pub(crate) struct Events(broadcast::Sender<HostEvent>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(EVENTS_KEPT).0)
    }
}

impl Events {
    pub(super) fn tell(&self, sandbox: &SandboxId, kind: HostEventKind) {
        // The only error is that there is no listener.
        let _ = self.0.send(HostEvent { at: SystemTime::now(), sandbox: sandbox.clone(), kind });
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<HostEvent> {
        self.0.subscribe()
    }
}

/// An event takes some hundred bytes.
const EVENTS_KEPT: usize = 1024;
