//! What this host and its VMM can do with a guest's memory, and the choice among that.

use crate::error::{BoxError, Error, Result, chain};
use crate::vmm::paging::Paging;
use crate::vmm::residents::Sharing;
use crate::vmm::tracking::Tracking;
use crate::vmm::{trial, userfaultfd};

/// The ways that a VMM supports on this host.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    /// Whether memory can be read lazily, or why not.
    pub(crate) lazy: Able,
    pub(crate) tracking: Trackers,
    /// Whether [`Paging::Mapped`] works.
    pub(crate) maps_files: bool,
}

/// Whether something works here, or why not.
pub(crate) type Able = std::result::Result<(), String>;

/// Who can track what a guest writes.
#[derive(Debug, Clone)]
pub(crate) enum Trackers {
    /// The VMM.
    Vmm,
    /// The kernel, as far as it can.
    Kernel { asynchronous: Able, synchronous: Able },
}

/// What was asked for, where anything was.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked {
    pub(crate) paging: Option<Paging>,
    pub(crate) tracking: Option<Tracking>,
}

/// How the memory of all guests of a host is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handling {
    pub(crate) paging: Paging,
    pub(crate) tracking: Tracking,
}

impl Handling {
    /// Which clones of QEMU's share their memory; `None` where it is handled in another way.
    pub(crate) fn sharing(self) -> Option<Sharing> {
        match self {
            Self { paging: Paging::Mapped, tracking: Tracking::Async } => Some(Sharing::Always),
            Self { paging: Paging::Lazy, tracking: Tracking::Async } => Some(Sharing::WithOthers),
            _ => None,
        }
    }
}

impl Ways {
    /// What works with QEMU, where wrenn serves and tracks the memory. Blocks for some milliseconds.
    pub(crate) fn of_qemu() -> Self {
        Self::of_kernel(&Here)
    }

    /// What works with Firecracker, which tracks by itself what its guests write. Blocks for a millisecond.
    pub(crate) fn of_firecracker() -> Self {
        Self { lazy: lazy(), tracking: Trackers::Vmm, maps_files: true }
    }

    /// The same where nothing serves the memory.
    pub(crate) fn unserved(self, why: String) -> Self {
        let lazy = self.lazy.and(Err(why));
        let tracking = match self.tracking {
            Trackers::Kernel { asynchronous, synchronous } => Trackers::Kernel {
                asynchronous: asynchronous.and_then(|()| lazy.clone()),
                synchronous: synchronous.and_then(|()| lazy.clone()),
            },
            Trackers::Vmm => Trackers::Vmm,
        };
        Self { lazy, tracking, ..self }
    }

    fn of_kernel(kernel: &dyn Kernel) -> Self {
        let tracks = |way, needs| able(kernel.tracks(way)).map_err(|why| format!("{why}: that needs {needs}"));
        let tracking = Trackers::Kernel {
            asynchronous: tracks(wrenn_snapshot::Tracking::Async, "Linux 6.7"),
            synchronous: tracks(wrenn_snapshot::Tracking::Sync, "Linux 5.19"),
        };
        let is_found = matches!(&tracking, Trackers::Kernel { asynchronous: Ok(()), .. });
        Self { lazy: able(kernel.serves()), tracking, maps_files: is_found }
    }
}

/// Whether memory can be read lazily here. Blocks for a millisecond.
pub(crate) fn lazy() -> Able {
    able(Here.serves())
}

impl Asked {
    /// What was not asked for by an option is as the environment asks for.
    pub(crate) fn or_environment(self) -> Self {
        Self {
            paging: self.paging.or_else(Paging::from_environment),
            tracking: self.tracking.or_else(Tracking::from_environment),
        }
    }

    /// What was asked for, and else the best that the VMM has here.
    ///
    /// # Errors
    /// [`Error::Host`] where what was asked for cannot work, with its remedy: at once, and not when the first sandbox is
    /// made.
    pub(crate) fn choose(self, ways: &Ways) -> Result<Handling> {
        let paging = choose_paging(self.paging, ways)?;
        let tracking = choose_tracking(self.tracking, ways)?;
        Ok(match (paging, &ways.tracking) {
            (Paging::Mapped, Trackers::Kernel { .. }) if tracking != Tracking::Async => {
                return Err(Error::Host {
                    problem: format!("Paging::Mapped cannot work with Tracking::{tracking:?}"),
                    remedy: "choose Tracking::Async, or leave the way of tracking open".to_owned(),
                    source: None,
                });
            }
            // Memory that is not served is not registered for writes either.
            (Paging::Eager, Trackers::Kernel { .. }) => Handling { paging, tracking: Tracking::Compare },
            _ => Handling { paging, tracking },
        })
    }
}

fn choose_paging(asked: Option<Paging>, ways: &Ways) -> Result<Paging> {
    match (asked, &ways.lazy) {
        (Some(Paging::Mapped), _) if !ways.maps_files => Err(Error::Host {
            problem: "Paging::Mapped needs Firecracker, or Linux 6.7 to track QEMU's guests asynchronously".to_owned(),
            remedy: "choose Paging::Lazy".to_owned(),
            source: None,
        }),
        (Some(paging @ (Paging::Lazy | Paging::Populate | Paging::OnDemand)), Err(why)) => Err(Error::Host {
            problem: format!("Paging::{paging:?} cannot work on this host ({why})"),
            remedy: "make userfaultfd usable, or choose Paging::Eager, which copies all memory first".to_owned(),
            source: None,
        }),
        (None, Err(why)) => {
            tracing::warn!(why, "no userfaultfd can be had, so each restore copies all memory first");
            Ok(Paging::Eager)
        }
        (asked, _) => Ok(asked.unwrap_or_default()),
    }
}

fn choose_tracking(asked: Option<Tracking>, ways: &Ways) -> Result<Tracking> {
    let Trackers::Kernel { asynchronous, synchronous } = &ways.tracking else {
        return match asked {
            None | Some(Tracking::Vmm) => Ok(Tracking::Vmm),
            Some(asked) => Err(Error::Host {
                problem: format!(
                    "Tracking::{asked:?} is for QEMU, and Firecracker tracks what its guests write itself"
                ),
                remedy: "leave the way of tracking open".to_owned(),
                source: None,
            }),
        };
    };
    match asked {
        None if asynchronous.is_ok() => Ok(Tracking::Async),
        None if synchronous.is_ok() => Ok(Tracking::Sync),
        None => Ok(Tracking::Compare),
        Some(Tracking::Compare) => Ok(Tracking::Compare),
        Some(Tracking::Async) => tracked(Tracking::Async, asynchronous),
        Some(Tracking::Sync) => tracked(Tracking::Sync, synchronous),
        Some(Tracking::Vmm) => Err(Error::Host {
            problem: "Tracking::Vmm needs Firecracker, and sandboxes run under QEMU here".to_owned(),
            remedy: "leave the way of tracking open".to_owned(),
            source: None,
        }),
    }
}

fn tracked(asked: Tracking, able: &Able) -> Result<Tracking> {
    able.as_ref().map(|()| asked).map_err(|why| Error::Host {
        problem: format!("Tracking::{asked:?} cannot work on this host ({why})"),
        remedy: "leave the way of tracking open, and wrenn takes the best that the kernel has; or use a newer kernel"
            .to_owned(),
        source: None,
    })
}

/// What can be tried of a kernel.
trait Kernel {
    /// Missing pages are served.
    fn serves(&self) -> std::result::Result<(), BoxError>;
    /// Missing pages of shared memory are served, and written ones are found.
    fn tracks(&self, way: wrenn_snapshot::Tracking) -> std::result::Result<(), BoxError>;
}

/// The kernel that this program runs on.
#[derive(Debug)]
struct Here;

impl Kernel for Here {
    fn serves(&self) -> std::result::Result<(), BoxError> {
        userfaultfd::serves()
    }

    fn tracks(&self, way: wrenn_snapshot::Tracking) -> std::result::Result<(), BoxError> {
        trial::serve_and_track(way)
    }
}

fn able(tried: std::result::Result<(), BoxError>) -> Able {
    tried.map_err(|error| chain(&*error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel answers to each of the things that are tried.
    #[derive(Clone, Copy)]
    struct Scripted {
        serves: bool,
        asynchronous: bool,
        synchronous: bool,
    }

    impl Kernel for Scripted {
        fn serves(&self) -> std::result::Result<(), BoxError> {
            if self.serves { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::EPERM).into()) }
        }

        fn tracks(&self, way: wrenn_snapshot::Tracking) -> std::result::Result<(), BoxError> {
            self.serves()?;
            let tracks = if way == wrenn_snapshot::Tracking::Sync { self.synchronous } else { self.asynchronous };
            // What Linux 6.1 says to the features of 6.7.
            if tracks { Ok(()) } else { Err(std::io::Error::from_raw_os_error(libc::EINVAL).into()) }
        }
    }

    /// Debian 13; Debian 12; Ubuntu 22.04 with vm.unprivileged_userfaultfd=1; and without.
    const LINUX_6_12: Scripted = Scripted { serves: true, asynchronous: true, synchronous: true };
    const LINUX_6_1: Scripted = Scripted { asynchronous: false, ..LINUX_6_12 };
    const LINUX_5_15: Scripted = Scripted { synchronous: false, ..LINUX_6_1 };
    const NO_USERFAULTFD: Scripted = Scripted { serves: false, ..LINUX_6_12 };

    fn choose(kernel: Scripted, paging: Option<Paging>, tracking: Option<Tracking>) -> Result<Handling> {
        Asked { paging, tracking }.choose(&Ways::of_kernel(&kernel))
    }

    #[test]
    fn each_kernel_is_used_for_the_best_that_it_has() {
        for (kernel, paging, tracking) in [
            (LINUX_6_12, Paging::Lazy, Tracking::Async),
            (LINUX_6_1, Paging::Lazy, Tracking::Sync),
            (LINUX_5_15, Paging::Lazy, Tracking::Compare),
            (NO_USERFAULTFD, Paging::Eager, Tracking::Compare),
        ] {
            assert_eq!(choose(kernel, None, None).unwrap(), Handling { paging, tracking });
            for asked in [Paging::Lazy, Paging::Populate, Paging::OnDemand].into_iter().filter(|_| kernel.serves) {
                assert_eq!(choose(kernel, Some(asked), None).unwrap(), Handling { paging: asked, tracking });
            }
            if tracking == Tracking::Async {
                let mapped = Handling { paging: Paging::Mapped, tracking };
                assert_eq!(choose(kernel, Some(Paging::Mapped), None).unwrap(), mapped);
            }
            let eager = Handling { paging: Paging::Eager, tracking: Tracking::Compare };
            assert_eq!(choose(kernel, Some(Paging::Eager), None).unwrap(), eager);
        }
    }

    #[test]
    fn a_way_that_was_asked_for_is_taken_or_refused_with_what_it_needs() {
        for asked in [Tracking::Async, Tracking::Sync, Tracking::Compare] {
            assert_eq!(choose(LINUX_6_12, None, Some(asked)).unwrap().tracking, asked);
        }
        assert_eq!(choose(LINUX_5_15, None, Some(Tracking::Compare)).unwrap().tracking, Tracking::Compare);
        for (kernel, asked, needs) in [
            (LINUX_6_1, Tracking::Async, "Linux 6.7"),
            (LINUX_5_15, Tracking::Sync, "Linux 5.19"),
            (NO_USERFAULTFD, Tracking::Sync, "not permitted"),
            (LINUX_6_12, Tracking::Vmm, "needs Firecracker"),
        ] {
            let error = choose(kernel, None, Some(asked)).unwrap_err();
            assert!(matches!(&error, Error::Host { problem, .. } if problem.contains(needs)), "{error:?}");
        }
    }

    #[test]
    fn paging_that_cannot_work_is_refused_at_the_opening_and_not_chosen() {
        let without = |paging, kernel| (paging, kernel, None);
        for (paging, kernel, tracking) in [
            without(Paging::Lazy, NO_USERFAULTFD),
            without(Paging::Populate, NO_USERFAULTFD),
            without(Paging::OnDemand, NO_USERFAULTFD),
            without(Paging::Mapped, NO_USERFAULTFD),
            without(Paging::Mapped, LINUX_6_1),
            (Paging::Mapped, LINUX_6_12, Some(Tracking::Sync)),
        ] {
            let error = choose(kernel, Some(paging), tracking).unwrap_err();
            assert!(matches!(error, Error::Host { .. }), "{error:?}");
            assert!(error.to_string().contains(&format!("Paging::{paging:?}")), "{error}");
        }
    }

    #[test]
    fn memory_that_nothing_serves_is_copied_and_compared_whatever_the_kernel_has() {
        let ways = Ways::of_kernel(&LINUX_6_12).unserved("no ptrace".to_owned());
        let copied = Handling { paging: Paging::Eager, tracking: Tracking::Compare };
        assert_eq!(Asked::default().choose(&ways).unwrap(), copied);
        let asked = Asked { paging: None, tracking: Some(Tracking::Async) };
        assert!(asked.choose(&ways).unwrap_err().to_string().contains("no ptrace"));
    }

    #[test]
    fn firecracker_tracks_by_itself_and_maps_files() {
        let ways = Ways { lazy: Ok(()), tracking: Trackers::Vmm, maps_files: true };
        for paging in [Paging::Mapped, Paging::Eager, Paging::Lazy] {
            let chosen = Asked { paging: Some(paging), tracking: None }.choose(&ways).unwrap();
            assert_eq!(chosen, Handling { paging, tracking: Tracking::Vmm });
        }
        let refused = Asked { paging: None, tracking: Some(Tracking::Sync) }.choose(&ways).unwrap_err();
        assert!(matches!(refused, Error::Host { .. }), "{refused:?}");
    }

    /// What the kernel of this machine has is tried, so this fails where a trial does, and not only its kernel.
    #[test]
    fn a_newer_way_works_only_where_the_older_ones_do() {
        let Ways { lazy, tracking, .. } = Ways::of_qemu();
        let Trackers::Kernel { asynchronous, synchronous } = tracking else { panic!("QEMU does not track") };
        println!("lazy: {lazy:?}, asynchronous: {asynchronous:?}, synchronous: {synchronous:?}");
        assert!(asynchronous.is_err() || synchronous.is_ok(), "{synchronous:?}");
        assert!(synchronous.is_err() || lazy.is_ok(), "{lazy:?}");
        for (tried, kernel) in [(&asynchronous, (6, 7)), (&synchronous, (5, 19))] {
            if lazy.is_ok() && running_kernel() >= kernel {
                assert_eq!(tried, &Ok(()), "Linux {kernel:?} has it");
            }
        }
    }

    fn running_kernel() -> (u32, u32) {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }
}
