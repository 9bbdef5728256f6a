//! What is kept of paused sandboxes, of snapshots with a name, and of booted images.

use serde::{Deserialize, Serialize};
use wrenn_snapshot::GenerationId;

use crate::site::record;
use crate::state::{Fixed, SandboxInfo, SandboxState};
use crate::vmm::shape::MachineShape;

/// What is kept of a paused sandbox; it stays while the sandbox runs again, so that a crash falls back to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PausedRecord {
    #[serde(flatten)]
    pub(crate) fixed: Fixed,
    #[serde(with = "record::text")]
    pub(crate) generation: GenerationId,
    pub(crate) paused_at_ms: u64,
    /// What the pause stored, in bytes.
    pub(crate) stored_bytes: u64,
}

impl PausedRecord {
    pub(crate) fn info(&self, state: SandboxState) -> SandboxInfo {
        self.fixed.info(state)
    }
}

/// What is kept of a snapshot with a name, and of a booted image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TemplateRecord {
    #[serde(with = "record::text")]
    pub(crate) generation: GenerationId,
    pub(crate) shape: MachineShape,
    pub(crate) created_at_ms: u64,
}
