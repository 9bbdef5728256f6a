//! What is taken of a machine, on its way into a generation.

use std::fs::File;

use wrenn_snapshot::{HeldPages, PAGE_BYTES, SpaceWriter};

use crate::error::Result;

/// A machine as it was at one instant.
pub(crate) struct Saved {
    pub(crate) memory: SavedMemory,
    pub(crate) state: Vec<u8>,
}

/// A machine's memory, on its way into a generation.
pub(crate) enum SavedMemory {
    /// All of it is there.
    Written(SpaceWriter),
    /// It is a copy that the VMM made, and which is still to be added.
    Copied { diff: File, into: SpaceWriter },
    /// The rest of it keeps what it held while the guest goes on, and is still to be added.
    Held { pages: HeldPages, into: SpaceWriter },
}

impl SavedMemory {
    /// What is still to be added and the guest may write to meanwhile.
    pub(crate) fn held_bytes(&self) -> u64 {
        match self {
            Self::Held { pages, .. } => pages.count() * PAGE_BYTES as u64,
            Self::Written(_) | Self::Copied { .. } => 0,
        }
    }

    /// Adds what is still to be added. Blocks.
    pub(crate) fn finish(self) -> Result<SpaceWriter> {
        match self {
            Self::Written(memory) => Ok(memory),
            Self::Copied { diff, mut into } => {
                // A page of zeros that was written is data in the VMM's file; only what was not written is a hole.
                into.add_sparse(&diff)?;
                Ok(into)
            }
            Self::Held { pages, mut into } => {
                into.add_held(&pages)?;
                Ok(into)
            }
        }
    }
}

/// The name of the device state among a generation's blobs.
pub(crate) const STATE_BLOB: &str = "state";
