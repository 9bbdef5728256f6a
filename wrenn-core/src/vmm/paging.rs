//! How a restored guest's memory comes to it, and which ways a host has.

use std::time::Duration;

use wrenn_snapshot::RestoreReport as MemoryReport;

use crate::error::{Error, Result, chain};
use crate::vmm::phases::{RestorePhases, RestoreSteps};
use crate::vmm::userfaultfd::{Here, Kernel};

/// How a restored guest's memory comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Paging {
    /// A page comes in when the guest touches it, and what the guest writes is found by the kernel's tracking. What an
    /// earlier restore of the same snapshot touched is read ahead, between the faults. Needs userfaultfd. Under QEMU the
    /// tracking needs Linux 6.7; on an older kernel each pause compares all memory that the guest has touched.
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
    /// How long each step of the VMM's part took.
    pub phases: RestorePhases,
    /// How long each step of the whole took.
    pub steps: RestoreSteps,
    /// Faults, pages, bytes and latencies of a lazy restore, and whether its page server is done; all zero for [`Paging::Eager`].
    pub memory: MemoryReport,
}

impl Paging {
    /// What the environment says: `WRENN_PAGING=lazy|populate|on-demand|eager|mapped`.
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

/// The ways that a VMM has on this host.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    pub(crate) lazy: Lazy,
    /// Whether [`Paging::Mapped`] works.
    pub(crate) maps_files: bool,
}

/// How memory can come lazily, and how it is found what the guest wrote to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lazy {
    /// The kernel or the VMM tracks what is written.
    Tracked,
    /// Nobody does. What was touched is compared with the snapshot that it came from.
    Compared { why: String },
    /// Not at all.
    Impossible { why: String },
}

impl Lazy {
    /// What QEMU can do here: wrenn serves its memory, and tracks it.
    pub(crate) fn of_qemu() -> Self {
        Self::of_qemu_on(&Here)
    }

    /// What Firecracker can do here: it tracks by itself.
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
