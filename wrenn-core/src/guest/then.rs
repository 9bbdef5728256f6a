//! What becomes of a guest that is captured, and what the capture took of it.

use std::time::Duration;

use crate::vmm::phases::SavePhases;

/// What becomes of a guest that is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is not needed any more.
    Stay,
    /// It goes on as soon as nothing of it has to be read: memory is copied while it runs, and made durable afterwards.
    GoOn,
}

/// What a fork or a snapshot took of its sandbox's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// How long the virtual machine stood still.
    pub stopped_for: Duration,
    /// How long its processes did: the same, and telling the guest before and after.
    pub frozen_for: Duration,
    /// Memory in bytes that was copied when it ran again, as it had been at the stop: what it had written since it was
    /// last looked at, where that was too much to copy in the stop.
    pub held_bytes: u64,
    /// How long each step of the VMM's part took.
    pub phases: SavePhases,
}
