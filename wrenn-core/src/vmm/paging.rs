//! How a restored guest gets its memory.

use wrenn_snapshot::RestoreReport as MemoryReport;

use crate::vmm::phases::{RestorePhases, RestoreSteps};
use crate::vmm::tracking::Tracking;

/// How a restored guest gets its memory.
///
/// ```
/// use wrenn_core::{Host, Paging};
///
/// assert_eq!(Paging::default(), Paging::Lazy);
/// let builder = Host::builder().paging(Paging::Populate);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Paging {
    /// A page is read when the guest touches it. Pages that an earlier restore of the same snapshot touched are read
    /// ahead, between the page faults. Needs userfaultfd. [`Tracking`] says how the pages are found that the guest writes.
    ///
    /// QEMU's sandboxes of one snapshot that live at the same time in this program share its memory from the second one on, as
    /// with [`Mapped`](Self::Mapped), where the host has eight times what the snapshot holds to spare and tracking is
    /// [asynchronous](Tracking::Async).
    #[default]
    Lazy,
    /// As [`Lazy`](Self::Lazy), and all other pages are read in the background, at 512 MiB/s. Once all pages are in
    /// place, the sandbox no longer needs its snapshot's files, and the page server ends unless it [is told of
    /// writes](Tracking::Sync). Costs a quarter of a
    /// processor while it reads, and afterwards as much memory as the guest has.
    Populate,
    /// As [`Lazy`](Self::Lazy), but nothing is read ahead.
    OnDemand,
    /// All memory is copied before the guest runs, and each pause compares all memory to find what the guest wrote.
    /// Needs nothing of the host. Costs time and memory in proportion to what the snapshot holds.
    Eager,
    /// All sandboxes of a snapshot map its memory privately, so the host holds each unwritten page once for all of them. For
    /// many sandboxes of one template. With Firecracker it is a file, as large as what the snapshot holds, which the first
    /// sandbox makes, and which stays. With QEMU it is in the memory of this program, which the first sandbox reads, and the
    /// last one of this program frees; that needs [`Tracking::Async`]. The checksums are verified only when it is made.
    Mapped,
}

/// What the restore of a guest has done so far: how long its steps took, and which memory was read.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let report = sandbox.restore_report().await?;
/// println!("up in {:?}, after {} page faults", report.steps.whole, report.memory.faults);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// How the guest gets its memory.
    pub paging: Paging,
    /// How it becomes known which memory the guest writes.
    pub tracking: Tracking,
    /// How long each step of the VMM's part took.
    pub phases: RestorePhases,
    /// How long each step of the create, the resume or the fork's child took.
    pub steps: RestoreSteps,
    /// Faults, pages, bytes and latencies of a lazy restore, and whether all memory is in place; all zero for
    /// [`Paging::Eager`].
    pub memory: MemoryReport,
}

impl Paging {
    /// The way that the environment asks for: `WRENN_PAGING=lazy|populate|on-demand|eager|mapped`.
    pub(crate) fn from_environment() -> Option<Self> {
        match std::env::var("WRENN_PAGING").as_deref() {
            Ok("lazy") => Some(Self::Lazy),
            Ok("populate") => Some(Self::Populate),
            Ok("on-demand") => Some(Self::OnDemand),
            Ok("eager") => Some(Self::Eager),
            Ok("mapped") => Some(Self::Mapped),
            Ok("") | Err(_) => None,
            Ok(other) => {
                tracing::warn!(
                    other,
                    "WRENN_PAGING is none of lazy, populate, on-demand, eager and mapped, and is ignored"
                );
                None
            }
        }
    }
}
