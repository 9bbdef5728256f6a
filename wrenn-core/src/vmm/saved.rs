//! The saved memory and device state of a machine, which are being written to a generation.

use std::fs::File;

use tokio::sync::oneshot;
use wrenn_snapshot::{HeldPages, PAGE_BYTES, SpaceWriter};

use crate::error::{Error, Result};

/// The state of a machine at one instant.
pub(crate) struct Saved {
    pub(crate) memory: SavedMemory,
    pub(crate) state: Vec<u8>,
}

/// A machine's memory at one instant, which is being written to a generation.
pub(crate) enum SavedMemory {
    /// All memory is written.
    Written(SpaceWriter),
    /// The memory is in a file that the VMM made, which has to be added yet.
    Copied { diff: File, into: SpaceWriter },
    /// The rest of the memory is held as it was at the stop while the guest goes on, and has to be added yet.
    Held { pages: HeldPages, into: SpaceWriter },
}

impl SavedMemory {
    /// How much memory has to be added yet while the guest may write to it, in bytes.
    pub(crate) fn held_bytes(&self) -> u64 {
        match self {
            Self::Held { pages, .. } => pages.count() * PAGE_BYTES as u64,
            Self::Written(_) | Self::Copied { .. } => 0,
        }
    }

    /// Adds the memory that was not added yet. Blocks.
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

/// Whether a VMM has begun to save a drive.
#[derive(Debug)]
pub(crate) enum Begun {
    Saving(SavingDrive),
    /// The VMM does not know what was written to it.
    Unknown(Box<SpaceWriter>),
}

/// A drive that its VMM copies while the guest goes on.
#[derive(Debug)]
pub(crate) struct SavingDrive(pub(super) oneshot::Receiver<Result<SpaceWriter>>);

impl SavingDrive {
    /// Waits until all of it is written. Blocks, until the VMM has sent everything or is gone.
    pub(crate) fn finish(self) -> Result<SpaceWriter> {
        let gone = |error: oneshot::error::RecvError| Error::failed("save the drive")(error.into());
        self.0.blocking_recv().map_err(gone)?
    }
}

/// The name of the device state among a generation's blobs.
pub(crate) const STATE_BLOB: &str = "state";
