//! How long the steps of a restore and a save took.

use std::time::Duration;

/// How long each step of a restore took in the VMM and in wrenn's driver of it. The steps come one after another.
///
/// The network, the drive and the guest's agent are not in it: see [`RestoreSteps`].
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let phases = sandbox.restore_report().await?.phases;
/// println!("the VMM was up in {:?} and loaded its devices in {:?}", phases.spawn, phases.load);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestorePhases {
    /// From the start of the VMM's process until it answered. The VMM's time, and the kernel's, which makes the process
    /// and its namespaces. Zero where it [stood by](crate::HostBuilder::standbys).
    pub spawn: Duration,
    /// Providing the guest's memory. wrenn's time: it copies all memory for [`Paging::Eager`](crate::Paging::Eager),
    /// and prepares the page server for a lazy restore.
    pub populate: Duration,
    /// Loading the device state. The VMM's time, and wrenn's, which serves the pages that the VMM touches.
    pub load: Duration,
    /// Telling the VMM's metadata service the sandbox's identity. The VMM's time; zero under QEMU, which has no such
    /// service.
    pub describe: Duration,
    /// From the order to run until the VMM answered it. The VMM's time; the guest runs by its end.
    pub run: Duration,
}

impl RestorePhases {
    /// Notes how long the order to run took. Later orders to run do not belong to the restore, and are not noted.
    pub(super) fn has_run(&mut self, took: Duration) {
        if self.run.is_zero() {
            self.run = took;
        }
    }
}

/// How long each step of a pause, a fork or a snapshot took in the VMM and in wrenn's driver of it.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let paused = sandbox.pause().await?;
/// if let Some(report) = paused.save_report() {
///     println!("memory took {:?}, devices took {:?}", report.phases.memory, report.phases.state);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavePhases {
    /// From the order to stop until the VMM answered it. The VMM's time: it stops the guest's processors and waits for
    /// its block devices.
    pub stop: Duration,
    /// Saving the memory that the guest wrote. Under QEMU it is wrenn's time, and happens at the same time as
    /// [`state`](Self::state). Under Firecracker it is the VMM's time, and the VMM writes its device state in it too.
    pub memory: Duration,
    /// Saving the device state. Under QEMU it is the VMM's time, and happens at the same time as
    /// [`memory`](Self::memory). Under Firecracker it is wrenn's time, to read the file that the VMM wrote.
    pub state: Duration,
}

/// How long each step of a create, a resume, or the start of a fork's child took. The steps come one after another and
/// add up to [`whole`](Self::whole). [`RestorePhases`] has the parts of the VMM's steps.
///
/// ```
/// use std::time::Duration;
///
/// let mut steps = wrenn_core::RestoreSteps::default();
/// steps.slot = Duration::from_millis(2);
/// steps.machine = Duration::from_millis(40);
/// assert_eq!(steps.sum(), Duration::from_millis(42));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreSteps {
    /// Finding the snapshot, and reading and checking its headers. wrenn's time. The boot is in it where an image had
    /// to be booted first. Close to zero for a fork's child, whose snapshot is loaded already.
    pub load: Duration,
    /// Waiting until fewer others start on this host: see
    /// [`HostBuilder::starts_at_once`](crate::HostBuilder::starts_at_once). Close to zero where few do.
    pub turn: Duration,
    /// Checking that the snapshot can run here, and opening its files. wrenn's time.
    pub open: Duration,
    /// Making the sandbox's network. Mostly the kernel's time.
    pub slot: Duration,
    /// Starting the VMM with its memory and device state: [`RestorePhases::spawn`], `populate` and `load`.
    pub machine: Duration,
    /// Waiting for the writable drive once the VMM was ready. The drive is filled while the VMM starts, and that part
    /// of the time is not counted here. wrenn's time.
    pub drive: Duration,
    /// [`RestorePhases::describe`] and [`RestorePhases::run`]: the VMM's time.
    pub run: Duration,
    /// From the order to run until the guest's agent had renewed the guest's clock, randomness, identity and token. The
    /// guest's time, and wrenn's, which serves the pages that the guest touches.
    pub agent: Duration,
    /// From the call to its answer; for a fork's child, from the end of the capture.
    pub whole: Duration,
}

impl RestoreSteps {
    /// All steps added up.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.load + self.turn + self.open + self.slot + self.machine + self.drive + self.run + self.agent
    }
}
