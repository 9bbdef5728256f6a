//! The start of a VMM's process: the descriptors that it inherits, the rights that it loses, and what is done in it
//! before its first instruction.
//!
//! ```text
//!  Launch ─▶ spawn ─▶ [exec stop: Tracing] ─▶ detach ─▶ Spawned
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use command_fds::{CommandFdExt, FdMapping};
use nix::unistd::Pid;
use rustix::process::{Gid, PidfdFlags, Signal, Uid, pidfd_open, pidfd_send_signal};

use super::inject;
use crate::network::slot::Namespaces;
use crate::sys::{ChildLimits, begin_with, inherit_nothing, restrict};
use crate::vmm::identity::Identity;
use crate::vmm::inject::Via;
use crate::vmm::userfaultfd::Device;

/// How to start a VMM.
pub(crate) struct Launch {
    /// What the VM's thread does first. The VMM inherits the namespaces that the thread enters.
    pub(crate) enter: Option<Enter>,
    /// What the VMM's process enters by itself, before it becomes another user.
    pub(crate) namespaces: Option<Namespaces>,
    pub(crate) directory: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Descriptors, and the numbers that the arguments know them by.
    pub(crate) inherited: Vec<(OwnedFd, RawFd)>,
    /// The user that the VMM runs as, reserved until the VMM is gone; `None` for the program's own user.
    pub(crate) identity: Option<Identity>,
    pub(crate) tracing: Tracing,
    /// Whether [`Process::attend`] will give the thread work.
    pub(crate) is_served: bool,
    /// What the VMM's exit codes mean.
    pub(crate) exit_code: fn(i32) -> Option<&'static str>,
}

pub(crate) type Enter = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Why the VMM is stopped at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracing {
    /// The VMM is not stopped.
    None,
    /// To make two userfaultfds in it.
    Userfaultfds,
    /// To make it die with this thread once more: it is a jailer, which changes its user and then executes Firecracker.
    NextExec,
}

/// A VMM's new userfaultfds.
#[derive(Debug)]
pub(crate) struct Userfaultfds {
    /// For the page server.
    pub(crate) served: OwnedFd,
    /// To hold pages with, for a snapshot of a guest that goes on.
    pub(crate) hold: OwnedFd,
}

/// A started VMM.
pub(super) struct Spawned {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) uffds: Option<Userfaultfds>,
}

/// The child, killed and reaped if a step after its start fails.
pub(super) struct Reaped {
    child: Option<Child>,
    /// Names the child even after a wait of the tracer has reaped it, when its process id may belong to another
    /// process.
    pidfd: Option<OwnedFd>,
}

impl Reaped {
    /// A child whose end nobody has waited for yet.
    pub(super) fn new(child: Child) -> Self {
        Self { child: Some(child), pidfd: None }
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // Either fails only for a child that has ended.
        match &self.pidfd {
            Some(pidfd) => drop(pidfd_send_signal(pidfd, Signal::KILL)),
            None => drop(child.kill()),
        }
        // `ECHILD` means that the tracer's wait has reaped it.
        let _ = child.wait();
    }
}

/// Starts the VMM. Its pidfd is in `begun` as soon as there is one, so that a start that hangs can be ended.
pub(super) fn start(mut launch: Launch, output: OwnedFd, begun: &OnceLock<OwnedFd>) -> io::Result<(Child, Spawned)> {
    let device = (launch.tracing == Tracing::Userfaultfds).then(Device::open).transpose()?;
    let running = command(&mut launch, output, device.as_ref())?.spawn()?;
    let id = running.id();
    let mut child = Reaped::new(running);
    let id = i32::try_from(id).map_err(io::Error::other)?;
    let pid = rustix::process::Pid::from_raw(id).ok_or_else(|| io::Error::other("a process id is never 0"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    child.pidfd = Some(pidfd.try_clone()?);
    // There is one start for each.
    let _ = begun.set(pidfd.try_clone()?);
    let pid = Pid::from_raw(id);
    let uffds = match launch.tracing {
        Tracing::None => None,
        Tracing::Userfaultfds => {
            inject::wait_for_exec(pid)?;
            device.map(|device| userfaultfds_in(pid, pidfd.as_fd(), &device)).transpose()?
        }
        Tracing::NextExec => {
            inject::wait_for_exec(pid)?;
            inject::next_exec(pid)?;
            inject::die_with_parent(pid)?;
            None
        }
    };
    if launch.tracing != Tracing::None {
        inject::detach(pid)?;
    }
    let child = child.child.take().ok_or_else(|| io::Error::other("the child is here until it is taken"))?;
    Ok((child, Spawned { pid, pidfd, uffds }))
}

fn command(launch: &mut Launch, output: OwnedFd, device: Option<&Device>) -> io::Result<Command> {
    let inherited = std::mem::take(&mut launch.inherited);
    let mut mappings: Vec<FdMapping> =
        inherited.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    if let Some(parent_fd) = device.map(Device::descriptor).transpose()?.flatten() {
        mappings.push(FdMapping { parent_fd, child_fd: UFFD_DEVICE_FD });
    }
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).env_clear().current_dir(&launch.directory).process_group(0);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    inherit_nothing(&mut command);
    if let Some(namespaces) = launch.namespaces.take() {
        begin_with(&mut command, move || namespaces.enter());
    }
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let user = launch.identity.as_ref().filter(|_| launch.tracing != Tracing::NextExec);
    let limits = ChildLimits {
        open_files_max: OPEN_FILES_MAX,
        traced: launch.tracing != Tracing::None,
        user: user.map(|user| (Uid::from_raw(user.uid), Gid::from_raw(user.gid))),
        parent: rustix::process::getpid(),
    };
    restrict(&mut command, limits);
    Ok(command)
}

/// Makes both userfaultfds in the stopped VMM, and then closes the device there, so that the VMM cannot make more.
fn userfaultfds_in(pid: Pid, pidfd: BorrowedFd<'_>, device: &Device) -> io::Result<Userfaultfds> {
    let via = device.via(UFFD_DEVICE_FD);
    let [served, hold] = [inject::userfaultfd_in(pid, pidfd, via)?, inject::userfaultfd_in(pid, pidfd, via)?];
    if let Via::Device(fd) = via {
        inject::close(pid, fd)?;
    }
    Ok(Userfaultfds { served, hold })
}

/// Above every number that the arguments use.
const UFFD_DEVICE_FD: RawFd = 60;
/// A microvm with two drives and a tap uses some twenty.
const OPEN_FILES_MAX: u64 = 256;
