//! A VMM process and the one OS thread that spawns, traces, serves and reaps it.
//!
//! ```text
//!  enter ─▶ spawn ─▶ [exec stop: Tracing] ─▶ detach ─▶ Process::attend ─▶ work (page server) ─▶ [kill] ─▶ wait ─▶ exited
//! ```
//!
//! It has to be one thread: only the thread that spawned may trace, and the kernel kills the VMM when the thread that
//! spawned it ends. So a page server that panics, or a program that is killed, takes its VM along. A page server that has
//! put all of the memory in place is done: its VM goes on, and the thread holds the userfaultfd until the VM's end, since
//! with its last descriptor the tracking of what the guest writes would end too.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use wrenn_snapshot::{EndReason, ServeEnd};

use super::inject;
use crate::sys::{ChildLimits, restrict};
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::identity::Identity;
use crate::vmm::inject::Via;

/// A VMM's new userfaultfds.
#[derive(Debug)]
pub(crate) struct Userfaultfds {
    /// For the page server.
    pub(crate) served: OwnedFd,
    /// To hold pages with, for a snapshot of a guest that goes on.
    pub(crate) hold: OwnedFd,
}

/// A running VMM. Dropping it kills the VMM; its thread reaps it.
pub(crate) struct Process {
    pidfd: Arc<OwnedFd>,
    pid: Pid,
    console: Console,
    attend: Option<mpsc::Sender<Attendance>>,
    exited: watch::Receiver<Option<Exit>>,
}

/// What the VM's thread does from then on: serve memory. Unless all of it is in place, the VM's end comes next.
pub(crate) type Attendance = Box<dyn FnOnce() -> Attended + Send>;

/// How a VM's memory was no longer served.
pub(crate) struct Attended {
    reason: EndReason,
    /// Kept open until the VM is gone.
    _uffd: Option<OwnedFd>,
}

impl Attended {
    /// It never was: the VMM's userfaultfd did not come.
    pub(crate) fn without_memory(reason: EndReason) -> Self {
        Self { reason, _uffd: None }
    }
}

impl From<ServeEnd> for Attended {
    fn from(ServeEnd { reason, uffd, .. }: ServeEnd) -> Self {
        Self { reason, _uffd: Some(uffd) }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// How to start it.
pub(crate) struct Launch {
    /// What the VM's thread does first: namespaces that it enters are the VMM's too.
    pub(crate) enter: Option<Enter>,
    pub(crate) directory: PathBuf,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Descriptors, and the numbers that the arguments know them by.
    pub(crate) inherited: Vec<(OwnedFd, RawFd)>,
    /// Whom to run as; the program's own user where it is `None`.
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
    /// It is not.
    None,
    /// To give it two userfaultfds.
    Userfaultfds,
    /// It changes its user and executes another program, which has to die with this thread too.
    NextExec,
}

impl Process {
    /// Starts the VMM, and gets its userfaultfds where they were asked for.
    pub(crate) async fn spawn(launch: Launch) -> io::Result<(Self, Option<Userfaultfds>)> {
        let console = Console::default();
        let (output, receiver) = pipe::pipe()?;
        tokio::spawn(console.clone().drain(receiver));
        let output = output.into_blocking_fd()?;
        let (attend, attendance) = mpsc::channel();
        let attend = launch.is_served.then_some(attend);
        let (spawned, ready) = oneshot::channel();
        let (exit, exited) = watch::channel(None);
        std::thread::Builder::new()
            .name("wrenn-vm".to_owned())
            .spawn(move || run(launch, output, spawned, &attendance, &exit))?;
        let Spawned { pid, pidfd, uffds } = ready.await.map_err(io::Error::other)??;
        Ok((Self { pidfd: Arc::new(pidfd), pid, console, attend, exited }, uffds))
    }

    /// Gives the VM's thread its work. Without it the thread waits for the end alone.
    pub(crate) fn attend(&mut self, work: Attendance) {
        if let Some(attend) = self.attend.take() {
            // A failed send means that the VM has ended, which `exited` tells.
            let _ = attend.send(work);
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    pub(crate) fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    /// Kills the VMM and waits until it is reaped.
    pub(crate) async fn kill(&mut self) {
        self.send_kill();
        self.attend = None;
        // An error means that the thread is gone, and with it the VMM.
        let _ = self.exited.wait_for(Option::is_some).await;
    }

    fn send_kill(&self) {
        // `ESRCH`, its only failure, means that there is nothing left to kill.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.send_kill();
    }
}

struct Spawned {
    pid: Pid,
    pidfd: OwnedFd,
    uffds: Option<Userfaultfds>,
}

fn run(
    mut launch: Launch,
    output: OwnedFd,
    spawned: oneshot::Sender<io::Result<Spawned>>,
    attendance: &mpsc::Receiver<Attendance>,
    exit: &watch::Sender<Option<Exit>>,
) {
    let exit_code = launch.exit_code;
    let entered = launch.enter.take().map_or(Ok(()), |enter| enter());
    let mut child = match entered.and_then(|()| start(launch, output)) {
        Ok((child, ready)) => {
            if spawned.send(Ok(ready)).is_err() {
                drop(Reaped(Some(child)));
                return;
            }
            child
        }
        Err(error) => {
            let _ = spawned.send(Err(error));
            return;
        }
    };
    let end = await_work(&mut child, attendance).map(|work| work());
    if end.as_ref().is_some_and(|end| !matches!(end.reason, EndReason::AllResident)) {
        // A guest whose memory nobody serves waits for ever, or reads zeros: killing it comes before closing the
        // userfaultfd, which `end` holds.
        let _ = child.kill();
    }
    let status = child.wait();
    exit.send_replace(Some(match end {
        Some(Attended { reason: EndReason::Failed(error), .. }) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the page server failed; its VM was killed");
            Exit::PageServer(Arc::new(error))
        }
        _ => Exit::Process(describe(&status, exit_code)),
    }));
}

/// Waits for work, and for a VMM that ends before there is any. `None` where there will be none.
fn await_work(child: &mut std::process::Child, attendance: &mpsc::Receiver<Attendance>) -> Option<Attendance> {
    loop {
        match attendance.recv_timeout(START_POLL) {
            Ok(work) => return Some(work),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            Err(mpsc::RecvTimeoutError::Timeout) if matches!(child.try_wait(), Ok(None)) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => return None,
        }
    }
}

fn describe(status: &io::Result<ExitStatus>, meaning: fn(i32) -> Option<&'static str>) -> String {
    match status {
        Ok(status) => match status.code().and_then(meaning) {
            Some(meaning) => format!("{status}: {meaning}"),
            None => status.to_string(),
        },
        Err(error) => format!("its status is unknown: {error}"),
    }
}

/// The child, killed and reaped if a step after its start fails.
struct Reaped(Option<std::process::Child>);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start(launch: Launch, output: OwnedFd) -> io::Result<(std::process::Child, Spawned)> {
    let lazily = launch.tracing == Tracing::Userfaultfds;
    let via = lazily.then(|| Device::open().map(|device| (device.via(), device))).transpose()?;
    let mut mappings: Vec<FdMapping> =
        launch.inherited.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    if let Some((_, Device(Some(device)))) = &via {
        mappings.push(FdMapping { parent_fd: device.try_clone()?, child_fd: UFFD_DEVICE_FD });
    }
    let mut command = Command::new(&launch.program);
    command.args(&launch.arguments).env_clear().current_dir(&launch.directory).process_group(0);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    if let Some(Identity { uid, gid }) = launch.identity {
        command.uid(uid).gid(gid);
    }
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    restrict(&mut command, ChildLimits { open_files_max: OPEN_FILES_MAX, traced: launch.tracing != Tracing::None });
    let mut child = Reaped(Some(command.spawn()?));
    let Some(running) = &child.0 else { return Err(io::Error::other("the child is here until it is taken")) };
    let id = i32::try_from(running.id()).map_err(io::Error::other)?;
    let pid = rustix::process::Pid::from_raw(id).ok_or_else(|| io::Error::other("a process id is never 0"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let pid = Pid::from_raw(id);
    if launch.tracing != Tracing::None {
        inject::wait_for_exec(pid)?;
    }
    let uffd_in = |via| inject::userfaultfd_in(pid, pidfd.as_fd(), via);
    let uffds = via.map(|(via, _)| Ok::<_, io::Error>(Userfaultfds { served: uffd_in(via)?, hold: uffd_in(via)? }));
    let uffds = uffds.transpose()?;
    if launch.tracing == Tracing::NextExec {
        inject::next_exec(pid)?;
        inject::die_with_parent(pid)?;
    }
    if launch.tracing != Tracing::None {
        inject::detach(pid)?;
    }
    let child = child.0.take().ok_or_else(|| io::Error::other("the child is here until it is taken"))?;
    Ok((child, Spawned { pid, pidfd, uffds }))
}

/// `/dev/userfaultfd`, where this host has it.
struct Device(Option<OwnedFd>);

impl Device {
    fn open() -> io::Result<Self> {
        match std::fs::OpenOptions::new().read(true).write(true).open(Path::new("/dev/userfaultfd")) {
            Ok(device) => Ok(Self(Some(device.into()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("/dev/userfaultfd cannot be opened ({error}): run as root, or give this user the device"),
            )),
        }
    }

    fn via(&self) -> Via {
        match &self.0 {
            Some(_) => Via::Device(UFFD_DEVICE_FD),
            None => Via::Syscall,
        }
    }
}

/// A restore hands over the work some 40 ms after the start; until then the VMM's end is looked for this often.
const START_POLL: Duration = Duration::from_millis(10);
/// Above every number that the arguments use.
const UFFD_DEVICE_FD: RawFd = 60;
/// A microvm with two drives and a tap uses some twenty.
const OPEN_FILES_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// What a jailer does: changes its user, and executes another program.
    const JAILER: &str = "setpriv";
    const ARGUMENTS: [&str; 5] = ["--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60"];

    #[tokio::test]
    async fn a_vmm_that_a_jailer_executes_dies_with_its_thread() {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: a_vmm_that_a_jailer_executes_dies_with_its_thread: a jailer needs root");
            return;
        }
        let Some(program) = crate::program::on_path(JAILER) else {
            println!("skipped: a_vmm_that_a_jailer_executes_dies_with_its_thread: there is no {JAILER}");
            return;
        };
        let launch = Launch {
            enter: None,
            directory: "/".into(),
            program,
            arguments: ARGUMENTS.map(str::to_owned).to_vec(),
            inherited: Vec::new(),
            identity: None,
            tracing: Tracing::NextExec,
            is_served: false,
            exit_code: |_| None,
        };
        let (_output, theirs) = io::pipe().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut child, spawned) = start(launch, theirs.into()).unwrap();
            assert!(matches!(child.try_wait(), Ok(None)));
            (child, spawned.pid)
        });
        // The thread has ended, and the child has not been killed by anybody else.
        let (mut child, pid) = thread.join().unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL), "{pid}");
    }
}
