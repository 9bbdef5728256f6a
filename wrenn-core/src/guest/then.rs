//! What becomes of a guest after a capture, and how long the capture took.

use std::time::Duration;

use crate::vmm::phases::SavePhases;
use crate::vmm::tracking::Tracking;

/// What becomes of a guest after its capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The guest stays stopped, since it is not needed any more.
    Stay,
    /// The guest goes on as soon as nothing of it has to be read any more. Most of its memory is copied before the
    /// stop, and the copy is made durable after it.
    GoOn,
}

/// How a pause, a fork or a snapshot found and saved what was written to the drive.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let report = sandbox.save_report().await?;
/// if report.is_some_and(|report| report.drive == wrenn_core::DriveSaving::Compared) {
///     println!("the more is on the drive, the longer a fork stops its parent here");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriveSaving {
    /// The VMM told what was written, and copied it as it was at the stop while the guest went on: QEMU does. The stop
    /// depends neither on the drive's size nor on what was written.
    Told,
    /// The drive's file was cloned in the stop, and compared after it: with Firecracker, where the file system of the
    /// data directory shares storage between files, as XFS and btrfs do.
    Cloned,
    /// All of the drive was compared in the stop: with Firecracker on other file systems, with
    /// [`Tracking::Compare`](crate::Tracking::Compare), after a save that failed, and at the first save after a boot.
    Compared,
}

/// How long a pause, a fork or a snapshot stopped its sandbox, and how long its steps took.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// sandbox.fork(1).await?;
/// if let Some(report) = sandbox.save_report().await? {
///     println!("the fork stopped its parent for {:?}", report.stopped_for);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// How long the virtual machine stood still.
    pub stopped_for: Duration,
    /// How long the guest's processes stood still: the stop of the machine, and the time to freeze and to thaw the
    /// processes.
    pub frozen_for: Duration,
    /// How much memory was copied after the guest went on, in bytes. Where there is too much to copy during the stop,
    /// the guest goes on, and the rest is copied as it was at the stop.
    pub held_bytes: u64,
    /// How the memory was found that the guest had written.
    pub tracking: Tracking,
    /// How it was found what the guest had written to its drive.
    pub drive: DriveSaving,
    /// How long each step of the VMM's part took.
    pub phases: SavePhases,
    /// How long each step of the pause, the fork or the snapshot took.
    pub steps: SaveSteps,
}

/// How long each step of a pause, a fork's capture or a snapshot took. The steps come one after another and add up to
/// [`whole`](Self::whole).
///
/// ```
/// use std::time::Duration;
///
/// let mut steps = wrenn_core::SaveSteps::default();
/// steps.stop = Duration::from_millis(4);
/// steps.publish = Duration::from_millis(30);
/// assert_eq!(steps.sum(), Duration::from_millis(34));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveSteps {
    /// Opening the files that the snapshot is written to, and waiting for a compaction that is overdue. wrenn's time.
    pub begin: Duration,
    /// Copying memory and writing the drive out while the guest still runs. wrenn's time; zero for a pause.
    pub ahead: Duration,
    /// Freezing the guest's processes, and running the guest's hooks for that. The guest's time.
    pub freeze: Duration,
    /// From the order to stop until nothing of the guest had to be read any more. It has the [`SavePhases`] in it, and
    /// saving the drive, which happens at the same time.
    pub stop: Duration,
    /// Letting the guest run on, running its hooks, and thawing its processes. The VMM's time and the guest's; zero for
    /// a pause.
    pub go_on: Duration,
    /// Storing what was saved and making it durable, as far as that was not done before. The disk's time.
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
