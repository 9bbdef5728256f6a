//! How it becomes known which memory a guest writes.

/// How it becomes known which memory a guest writes. A pause, a fork and a snapshot store only what was written.
///
/// The best way that the host's kernel has is chosen when the [`Host`](crate::Host) is opened, by trying each on real
/// memory. `docs/performance.md` in the repository has what each way costs.
///
/// ```
/// use wrenn_core::{Host, Tracking};
///
/// // To try how an older kernel would do.
/// let builder = Host::builder().tracking(Tracking::Sync);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tracking {
    /// The kernel marks each page when it is first written, and the marks are read at a pause. Needs Linux 6.7. Costs
    /// about a microsecond for the first write to a page after each restore or snapshot.
    Async,
    /// The first write to each page after a restore or a snapshot waits until wrenn has noted the page. Needs Linux 5.19.
    /// Costs some 10 microseconds for such a write; a guest that writes in order waits for one in sixteen. Up to 60 KiB
    /// after what is written in order may be stored, too.
    Sync,
    /// Nothing is noted. Each pause, fork and snapshot compares all memory that the guest has touched, and all of its
    /// drive, with the snapshot that it came from. Needs nothing of the host. Costs the writes nothing, and a pause or a fork's stop some 100 ms for
    /// each 100 MiB that the guest has touched.
    Compare,
    /// The VMM tracks the writes by itself: Firecracker does, by KVM's own log of written pages.
    Vmm,
}

impl Tracking {
    /// The way that the environment asks for: `WRENN_TRACKING=async|sync|compare`.
    pub(crate) fn from_environment() -> Option<Self> {
        match std::env::var("WRENN_TRACKING").as_deref() {
            Ok("async") => Some(Self::Async),
            Ok("sync") => Some(Self::Sync),
            Ok("compare") => Some(Self::Compare),
            Ok("") | Err(_) => None,
            Ok(other) => {
                tracing::warn!(other, "WRENN_TRACKING is none of async, sync and compare, and is ignored");
                None
            }
        }
    }
}
