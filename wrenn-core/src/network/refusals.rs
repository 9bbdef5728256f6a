//! What guests were refused by their network policies, as it happens.

use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::broadcast;
use wrenn_net::Refused;

use crate::id::SandboxId;

/// Something that a sandbox's [`NetworkPolicy`](crate::NetworkPolicy) refused, as
/// [`Host::refusals`](crate::Host::refusals) tells it.
///
/// ```
/// fn line(refusal: &wrenn_core::NetworkRefusal) -> Result<String, serde_json::Error> {
///     serde_json::to_string(refusal)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NetworkRefusal {
    /// When it was refused, by this host's clock.
    pub at: SystemTime,
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What was refused, and why.
    #[serde(flatten)]
    pub refused: Refused,
}

/// The channel on which they are sent. A listener that is too slow misses the oldest; so does one whose guests are
/// refused more than it can read.
#[derive(Debug, Clone)]
pub(crate) struct Refusals(broadcast::Sender<NetworkRefusal>);

impl Default for Refusals {
    fn default() -> Self {
        Self(broadcast::channel(KEPT).0)
    }
}

impl Refusals {
    pub(super) fn tell(&self, sandbox: &SandboxId, refused: &Refused) {
        // The only error is that there is no listener.
        let _ =
            self.0.send(NetworkRefusal { at: SystemTime::now(), sandbox: sandbox.clone(), refused: refused.clone() });
    }

    pub(crate) fn listen(&self) -> broadcast::Receiver<NetworkRefusal> {
        self.0.subscribe()
    }
}

/// Some hundred bytes each.
const KEPT: usize = 1024;
