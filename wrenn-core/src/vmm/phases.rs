//! How long a machine's steps took, as far as the VMM and its driver go.

use std::time::Duration;

/// How long each step of a machine's restore took, in the driver and its VMM. The steps come one after another, so together
/// they are the machine's part of a restore.
///
/// The rest of a restore is made by others: the network slot, the drive, and the guest's agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestorePhases {
    /// From the start of the VMM's process until it answered its host. The VMM's time, and that of the kernel, which makes
    /// the process and its namespaces.
    pub spawn: Duration,
    /// Putting the snapshot's memory behind the machine's. wrenn's time: it copies all of the memory for
    /// [`Paging::Eager`](crate::Paging::Eager), and prepares the page server for a lazy restore.
    pub populate: Duration,
    /// Loading the device state. The VMM's time, with the pages that it touches meanwhile, which wrenn serves.
    pub load: Duration,
    /// Telling the VMM's metadata service who the guest is. The VMM's time; zero under QEMU, which has no such service.
    pub describe: Duration,
    /// From the order to run until the VMM answered it. The VMM's time; the guest runs by its end.
    pub run: Duration,
}

impl RestorePhases {
    /// The machine was told to run. Only the first time belongs to the restore.
    pub(super) fn has_run(&mut self, took: Duration) {
        if self.run.is_zero() {
            self.run = took;
        }
    }
}

/// How long each step of a machine's last save took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavePhases {
    /// From the order to stop until the VMM answered it. The VMM's time: the guest's processors stop, and its block devices
    /// come to rest.
    pub stop: Duration,
    /// Taking what the guest wrote. Under QEMU it is wrenn's time, beside [`state`](Self::state). Firecracker writes both by
    /// itself, in its own time, before anything is read.
    pub memory: Duration,
    /// Taking the device state. Under QEMU it is the VMM's time, beside [`memory`](Self::memory). Under Firecracker it is
    /// wrenn's, for reading the file that the VMM wrote.
    pub state: Duration,
}

/// How long each step of a create, a resume, or the start of a fork's child took. They come one after another and add up
/// to [`whole`](Self::whole); what the VMM's part is made of is in [`RestorePhases`].
///
/// The drive is filled while the VMM starts: what it took beyond that is a step of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreSteps {
    /// Finding the snapshot, and reading and checking its headers. wrenn's time; with a template that was not booted yet it
    /// has the boot in it. Zero for a fork's child, whose snapshot is at hand.
    pub load: Duration,
    /// Checking that the snapshot can run here, and opening its files. wrenn's time.
    pub open: Duration,
    /// Making the network slot. The kernel's time, for the most part.
    pub slot: Duration,
    /// Starting the VMM with its memory and device state: [`RestorePhases::spawn`], `populate` and `load`.
    pub machine: Duration,
    /// Waiting for the drive to be filled, once the VMM was ready. wrenn's time.
    pub drive: Duration,
    /// [`RestorePhases::describe`] and [`RestorePhases::run`]: the VMM's time.
    pub run: Duration,
    /// From then until the agent had made the guest itself again: the guest's time, with the pages that it touches
    /// meanwhile, which wrenn serves.
    pub agent: Duration,
    /// From the call to its answer.
    pub whole: Duration,
}

impl RestoreSteps {
    /// All steps added up.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.load + self.open + self.slot + self.machine + self.drive + self.run + self.agent
    }
}
