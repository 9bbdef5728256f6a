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

/// What a pause, a fork or a snapshot took of its sandbox's time.
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
    /// How long each step of the whole took.
    pub steps: SaveSteps,
}

/// How long each step of a pause, a fork's capture or a snapshot took. They come one after another and add up to
/// [`whole`](Self::whole).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveSteps {
    /// Opening the files that the snapshot goes to. wrenn's time; a compaction that is overdue is waited for.
    pub begin: Duration,
    /// Copying memory and writing the drive out while the guest still runs. wrenn's time; zero for a pause.
    pub ahead: Duration,
    /// Freezing the guest's processes. The guest's time, with its hooks.
    pub freeze: Duration,
    /// From the order to stop until nothing of the guest was needed any more: [`SavePhases`], and saving the drive, which
    /// goes on beside them.
    pub stop: Duration,
    /// Letting the guest run on and thawing its processes: the VMM's time and the guest's, with its hooks. Zero for a pause.
    pub go_on: Duration,
    /// Storing what was saved and making that durable; after a guest that goes on, what is left of it then. The disk's time.
    pub publish: Duration,
    /// From the start of the capture to its end.
    pub whole: Duration,
}

impl SaveSteps {
    /// All steps added up.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.begin + self.ahead + self.freeze + self.stop + self.go_on + self.publish
    }
}
