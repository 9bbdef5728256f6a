//! How a restored guest gets its memory, and which ways a host supports.

use std::time::Duration;

use wrenn_snapshot::RestoreReport as MemoryReport;

use crate::error::{Error, Result, chain};
use crate::vmm::phases::{RestorePhases, RestoreSteps};
use crate::vmm::userfaultfd::{Here, Kernel};

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
    /// ahead, between the page faults. The kernel tracks which pages the guest writes. Needs userfaultfd. Under QEMU
    /// the tracking needs Linux 6.7; on an older kernel each pause compares all memory that the guest has touched.
    #[default]
    Lazy,
    /// As [`Lazy`](Self::Lazy), and all other pages are read in the background, at 512 MiB/s. Once all pages are in
    /// place, the page server ends, and the sandbox no longer needs its snapshot's files. Costs a quarter of a
    /// processor while it reads, and afterwards as much memory as the guest has.
    Populate,
    /// As [`Lazy`](Self::Lazy), but nothing is read ahead.
    OnDemand,
    /// All memory is copied before the guest runs, and each pause compares all memory to find what the guest wrote.
    /// Needs nothing of the host. Costs time and memory in proportion to what the snapshot holds.
    Eager,
    /// All sandboxes of a snapshot map one file of its memory, privately, so the host's page cache holds each unwritten
    /// page once for all of them. For many sandboxes of one template. Needs Firecracker. Costs a file as large as what
    /// the snapshot holds. The first sandbox makes the file, and the checksums are verified only then.
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
    /// How long copying all memory took; zero except for [`Paging::Eager`].
    pub populated_in: Duration,
    /// How long the VMM took to load the device state, with the pages of memory that it touches to do so.
    pub loaded_in: Duration,
    /// How long each step of the VMM's part took.
    pub phases: RestorePhases,
    /// How long each step of the create, the resume or the fork's child took.
    pub steps: RestoreSteps,
    /// Faults, pages, bytes and latencies of a lazy restore, and whether its page server is done; all zero for
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

    /// The way that was asked for, or the best that the VMM has here.
    ///
    /// # Errors
    /// [`Error::Host`] where the way that was asked for cannot work, with its remedy: at once, and not when the first
    /// sandbox is made.
    pub(crate) fn choose(asked: Option<Self>, ways: &Ways) -> Result<Self> {
        let is_lazy = matches!(asked, None | Some(Self::Lazy | Self::Populate | Self::OnDemand));
        match (asked, &ways.lazy) {
            (Some(Self::Mapped), _) if !ways.maps_files => Err(Error::Host {
                problem: "Paging::Mapped needs Firecracker, and sandboxes run under QEMU here".to_owned(),
                remedy: "choose Paging::Lazy".to_owned(),
                source: None,
            }),
            (Some(paging), Lazy::Impossible { why }) if is_lazy => Err(Error::Host {
                problem: format!("Paging::{paging:?} cannot work on this host ({why})"),
                remedy: "make userfaultfd usable, or choose Paging::Eager, which copies all memory first".to_owned(),
                source: None,
            }),
            (None, Lazy::Impossible { why }) => {
                tracing::warn!(why, "no userfaultfd can be had, so each restore copies all memory first");
                Ok(Self::Eager)
            }
            (_, Lazy::Compared { why }) if is_lazy => {
                tracing::warn!(
                    why,
                    "written memory cannot be tracked, so each pause compares all memory that was touched"
                );
                Ok(asked.unwrap_or_default())
            }
            _ => Ok(asked.unwrap_or_default()),
        }
    }
}

/// The ways that a VMM supports on this host.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    pub(crate) lazy: Lazy,
    /// Whether [`Paging::Mapped`] works.
    pub(crate) maps_files: bool,
}

/// Whether memory can be read lazily, and how the pages that the guest wrote are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lazy {
    /// The kernel or the VMM tracks what is written.
    Tracked,
    /// Neither the kernel nor the VMM tracks writes. Touched memory is compared with the snapshot that it came from.
    Compared { why: String },
    /// Memory cannot be read lazily.
    Impossible { why: String },
}

impl Lazy {
    /// What works with QEMU on this host, where wrenn serves and tracks the memory.
    pub(crate) fn of_qemu() -> Self {
        Self::of_qemu_on(&Here)
    }

    /// What works with Firecracker on this host. Firecracker tracks writes by itself.
    pub(crate) fn of_firecracker() -> Self {
        match Here.serves() {
            Ok(()) => Self::Tracked,
            Err(error) => Self::Impossible { why: chain(&*error) },
        }
    }

    fn of_qemu_on(kernel: &dyn Kernel) -> Self {
        let Err(untracked) = kernel.serves_and_tracks() else { return Self::Tracked };
        match kernel.serves() {
            Ok(()) => Self::Compared { why: format!("{}: that needs Linux 6.7", chain(&*untracked)) },
            Err(error) => Self::Impossible { why: chain(&*error) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BoxError;

    /// What a kernel answers to each of the two things that are tried.
    struct Scripted {
        serves: bool,
        tracks: bool,
    }

    impl Kernel for Scripted {
        fn serves(&self) -> Result<(), BoxError> {
            if self.serves { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::EPERM).into()) }
        }

        fn serves_and_tracks(&self) -> Result<(), BoxError> {
            self.serves()?;
            // What Linux 6.1 says to the features of 6.7.
            if self.tracks { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::EINVAL).into()) }
        }
    }

    fn ways(serves: bool, tracks: bool) -> Ways {
        Ways { lazy: Lazy::of_qemu_on(&Scripted { serves, tracks }), maps_files: false }
    }

    #[test]
    fn a_kernel_without_tracking_is_lazy_and_compares() {
        let old = ways(true, false);
        assert!(matches!(&old.lazy, Lazy::Compared { why } if why.contains("Linux 6.7")), "{old:?}");
        for paging in [Paging::Lazy, Paging::Populate, Paging::OnDemand, Paging::Eager] {
            assert_eq!(Paging::choose(Some(paging), &old).unwrap(), paging);
        }
        assert_eq!(Paging::choose(None, &old).unwrap(), Paging::Lazy);
    }

    #[test]
    fn what_cannot_work_is_refused_at_the_opening_and_not_chosen() {
        let none = ways(false, false);
        assert_eq!(Paging::choose(None, &none).unwrap(), Paging::Eager);
        assert_eq!(Paging::choose(Some(Paging::Eager), &none).unwrap(), Paging::Eager);
        for paging in [Paging::Lazy, Paging::Populate, Paging::OnDemand, Paging::Mapped] {
            let error = Paging::choose(Some(paging), &none).unwrap_err();
            assert!(matches!(error, Error::Host { .. }), "{error:?}");
            assert!(error.to_string().contains(&format!("Paging::{paging:?}")), "{error}");
        }
        assert_eq!(Paging::choose(None, &ways(true, true)).unwrap(), Paging::Lazy);
        let firecracker = Ways { maps_files: true, ..ways(true, true) };
        assert_eq!(Paging::choose(Some(Paging::Mapped), &firecracker).unwrap(), Paging::Mapped);
    }
}
