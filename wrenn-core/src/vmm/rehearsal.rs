//! The start of a VMM, rehearsed: whether this program has the rights that it takes. Each step is tried as a real start
//! does it, so that the kernel decides, with whatever a container's profile has changed.
//!
//! ```text
//!  rehearse ─▶ a thread of its own: network ─▶ users ─▶ devices ─▶ start, kill ─▶ traced start, read its pages ─▶ its end
//! ```

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::process::{Signal, pidfd_send_signal};
use wrenn_net::Slot;

use crate::error::{BoxError, Error, Result};
use crate::network::slot::Namespaces;
use crate::runtime::blocking;
use crate::vmm::devices;
use crate::vmm::identity::{DIRECTORY, Identity};
use crate::vmm::launch::{Launch, Spawned, Tracing, start};
use crate::vmm::shape::Acceleration;

/// What to rehearse.
#[derive(Debug, Clone)]
pub(crate) struct Play {
    /// The VMM.
    pub(crate) program: PathBuf,
    /// Arguments with which it runs until it is killed, and does nothing. Empty where the VMM is not traced at its
    /// start.
    pub(crate) idle: &'static [&'static str],
    pub(crate) acceleration: Acceleration,
}

/// How each step of the rehearsal went. What depends on a step that failed was not tried, and counts as good.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    /// A slot can be made.
    pub(crate) network: Result<Network>,
    /// The VMM gets a user of its own, with its devices where it needs some, starts in the slot, and can be killed.
    pub(crate) start: Result<()>,
    /// The VMM can be traced at its start, and its page tables read; what lazy restores take.
    pub(crate) tracing: Result<(), String>,
}

impl Play {
    /// Takes some milliseconds. Leaves nothing behind.
    pub(crate) async fn rehearse(self) -> Result<Rehearsal> {
        // Mounts belong to a thread, so the thread is one that ends here.
        let on_own_thread = move || std::thread::scope(|scope| scope.spawn(|| self.run()).join());
        let played = blocking("rehearse the start of a VMM", on_own_thread).await?;
        played.map_err(|_| Error::failed("rehearse the start of a VMM")("the rehearsal panicked".into()))
    }

    fn run(&self) -> Rehearsal {
        let slot = Slot::create().map(|(slot, _tap, gate)| (slot, Network { ipv6: gate.has_ipv6() }));
        let start = self.starts(slot.as_ref().ok().map(|(slot, _)| slot));
        let tracing = match &start {
            Ok(place) if !self.idle.is_empty() => self.traced(place),
            Ok(_) | Err(_) => Ok(()),
        };
        let start = start.map(drop);
        Rehearsal { network: slot.map(|(_, network)| network).map_err(Error::from), start, tracing }
    }

    fn starts<'a>(&self, slot: Option<&'a Slot>) -> Result<Place<'a>> {
        let identity = Identity::reserve().map_err(no_users)?;
        if let (Acceleration::Kvm, Some(owner)) = (self.acceleration, &identity) {
            devices::own(devices::KVM, owner).map_err(no_devices)?;
        }
        let place = Place { identity, slot };
        let (mut child, spawned) =
            self.begin(&place, &["--version"], Tracing::None).map_err(|error| self.blame(place.clone(), error))?;
        let killed = pidfd_send_signal(&spawned.pidfd, Signal::KILL);
        // One that cannot be killed has told its version, and ends by itself.
        let _ = child.wait();
        killed.map_err(|errno| no_kill(errno.into()))?;
        Ok(place)
    }

    /// What keeps the VMM from being started in its place: the same start with less tells.
    fn blame(&self, place: Place<'_>, error: io::Error) -> Error {
        let starts = |place| match self.begin(&place, &["--version"], Tracing::None) {
            Ok((mut child, _)) => child.wait().is_ok(),
            Err(_) => false,
        };
        if place.slot.is_some() && starts(Place { slot: None, ..place.clone() }) {
            return no_entry(error);
        }
        let has_user = place.identity.is_some();
        if has_user && starts(Place { identity: None, slot: None }) {
            return no_change_of_user(error);
        }
        no_start(&self.program, error)
    }

    /// Only once a VMM can be killed: what fails here kills it.
    fn traced(&self, place: &Place<'_>) -> Result<(), String> {
        let began = self.begin(place, self.idle, Tracing::Userfaultfds);
        let (mut child, spawned) = began.map_err(|error| {
            format!(
                "QEMU cannot be traced at its start ({error}): that takes CAP_SYS_PTRACE, a seccomp profile that allows \
                 ptrace and pidfd_getfd, and kernel.yama.ptrace_scope below 3"
            )
        })?;
        let opened = File::open(format!("/proc/{}/pagemap", spawned.pid));
        // It fails only for a VMM that has ended.
        let _ = pidfd_send_signal(&spawned.pidfd, Signal::KILL);
        let _ = child.wait();
        opened.map(drop).map_err(|error| {
            format!("a VMM's page tables cannot be read ({error}): that takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")
        })
    }

    fn begin(
        &self,
        place: &Place<'_>,
        arguments: &[&str],
        tracing: Tracing,
    ) -> io::Result<(std::process::Child, Spawned)> {
        let launch = Launch {
            enter: None,
            namespaces: place.slot.map(Namespaces::of).transpose()?,
            directory: "/".into(),
            program: self.program.clone(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            inherited: Vec::new(),
            identity: place.identity.clone(),
            tracing,
            is_served: false,
            exit_code: |_| None,
        };
        let nowhere: OwnedFd = File::options().write(true).open("/dev/null")?.into();
        start(launch, nowhere, &OnceLock::new())
    }
}

/// What guests have of a network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    /// Besides IPv4.
    pub(crate) ipv6: bool,
}

/// Where a VMM is started, and as whom.
#[derive(Clone)]
struct Place<'a> {
    identity: Option<Identity>,
    slot: Option<&'a Slot>,
}

fn no_entry(source: io::Error) -> Error {
    Error::Host {
        problem: "a network namespace cannot be entered".to_owned(),
        remedy: "run as root, or with CAP_SYS_ADMIN".to_owned(),
        source: Some(source.into()),
    }
}

fn no_users(source: Error) -> Error {
    Error::Host {
        problem: format!("no user can be reserved for a VMM: {DIRECTORY} cannot be used"),
        remedy: "make /run a directory that root may write, such as a tmpfs (in a container: `--tmpfs /run`)"
            .to_owned(),
        source: Some(source.into()),
    }
}

fn no_devices(source: io::Error) -> Error {
    Error::Host {
        problem: "a VMM cannot be given a /dev/kvm of its own".to_owned(),
        remedy: "allow mounts and device nodes (CAP_SYS_ADMIN, CAP_MKNOD, CAP_CHOWN, CAP_FOWNER; in a container also \
                 `--device /dev/kvm` \
                 and `--security-opt apparmor=unconfined` too), or emulate the processor with WRENN_VMM=qemu and \
                 WRENN_ACCELERATION=tcg"
            .to_owned(),
        source: Some(source.into()),
    }
}

fn no_change_of_user(source: io::Error) -> Error {
    Error::Host {
        problem: "a VMM cannot be given a user of its own".to_owned(),
        remedy:
            "run with CAP_SETUID and CAP_SETGID, and outside of user namespaces: those of rootless containers have \
                 no such users"
                .to_owned(),
        source: Some(source.into()),
    }
}

fn no_start(program: &Path, source: io::Error) -> Error {
    Error::Host {
        problem: format!("{} cannot be executed", program.display()),
        remedy: "see to it that every user may execute it, and that it is on no file system that is mounted `noexec`"
            .to_owned(),
        source: Some(BoxError::from(source)),
    }
}

fn no_kill(source: io::Error) -> Error {
    Error::Host {
        problem: "a VMM with a user of its own cannot be killed, and would outlive this program".to_owned(),
        remedy: "run with CAP_KILL".to_owned(),
        source: Some(source.into()),
    }
}
