//! How a restored guest's memory comes to it.

use std::time::Duration;

use wrenn_snapshot::RestoreReport as MemoryReport;

/// How a restored guest's memory comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Paging {
    /// A page comes in when the guest touches it, and what the guest writes is found by the kernel's tracking. What an
    /// earlier restore of the same snapshot touched is read ahead, between the faults. Needs userfaultfd, and Linux 6.7.
    #[default]
    Lazy,
    /// As [`Lazy`](Self::Lazy), and the pages that nobody asks for come in the background, at 512 MiB/s. Once all are in
    /// place the page server ends, and the sandbox needs its snapshot's files no more. Costs a quarter of a processor
    /// meanwhile, and then as much memory as the guest has.
    Populate,
    /// As [`Lazy`](Self::Lazy), and nothing is read ahead.
    OnDemand,
    /// All of it is copied before the guest runs, and what the guest wrote is found by comparing all of it. Needs
    /// nothing of the host; costs time and memory in proportion to what the snapshot holds.
    Eager,
    /// All sandboxes of a snapshot map one file of its memory, privately: what none of them writes is in the host's page
    /// cache once. For many clones of one template. Needs Firecracker; costs a file of what the snapshot holds, which the
    /// first of them makes, and which is checked then alone.
    Mapped,
}

/// What a restore has done so far.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// How the memory came.
    pub paging: Paging,
    /// How long copying all of it took; zero but for [`Paging::Eager`].
    pub populated_in: Duration,
    /// How long the VMM took to load the device state, with the pages that it touches meanwhile.
    pub loaded_in: Duration,
    /// Faults, pages, bytes and latencies of a lazy restore, and whether its page server is done; all zero for [`Paging::Eager`].
    pub memory: MemoryReport,
}

impl Paging {
    /// What the host and the environment allow: `WRENN_PAGING=lazy|populate|on-demand|eager|mapped`, else lazy where there is a
    /// way to make a userfaultfd that serves the kernel's own accesses.
    pub(crate) fn choose() -> Self {
        match std::env::var("WRENN_PAGING").as_deref() {
            Ok("lazy") => return Self::Lazy,
            Ok("populate") => return Self::Populate,
            Ok("on-demand") => return Self::OnDemand,
            Ok("eager") => return Self::Eager,
            Ok("mapped") => return Self::Mapped,
            Ok("") | Err(_) => {}
            Ok(other) => {
                tracing::warn!(
                    other,
                    "WRENN_PAGING is none of lazy, populate, on-demand, eager and mapped, and is ignored"
                )
            }
        }
        let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok();
        let knob = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
        if device || knob.trim() == "1" {
            return Self::Lazy;
        }
        tracing::warn!(
            "this user may make no userfaultfd, so restores copy all memory first: run as root, or give it \
             /dev/userfaultfd"
        );
        Self::Eager
    }
}
