//! A VMM process and the one OS thread that spawns, traces, serves and reaps it.
//!
//! ```text
//!  enter ─▶ spawn ─▶ [exec stop: Tracing] ─▶ detach ─▶ Process::attend ─▶ work (page server) ─▶ [kill] ─▶ wait ─▶ exited
//! ```
//!
//! One thread has to do all of this: only the thread that spawned the VMM may trace it, and the kernel kills the VMM
//! when that thread ends. So when a page server panics, or the program is killed, the VM ends too. When a page server
//! has put all memory in place, it is done and its VM goes on. The thread then keeps the userfaultfd open until the
//! VM's end, since the kernel tracks the guest's writes only as long as that is open.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use nix::unistd::Pid;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use wrenn_snapshot::{EndReason, ServeEnd, Uffd};

use crate::error::Error;
use crate::patience::patient;
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::launch::{Launch, Reaped, Spawned, Userfaultfds, start};

/// A running VMM. Dropping it kills the VMM; its thread reaps it.
pub(crate) struct Process {
    pidfd: Arc<OwnedFd>,
    pid: Pid,
    console: Console,
    attend: Option<Attend>,
    exited: watch::Receiver<Option<Exit>>,
    given_up: Arc<OnceLock<String>>,
}

/// The work of the VM's thread after the start: serving memory. Where it ends before all memory is in place, the VM is
/// killed.
pub(crate) type Attendance = Box<dyn FnOnce() -> Attended + Send>;

/// Gives a VM's thread its work.
struct Attend {
    work: mpsc::Sender<Attendance>,
    /// Tells the thread of it.
    bell: Arc<OwnedFd>,
}

/// What a VM's thread gets its work by.
struct Attending {
    work: mpsc::Receiver<Attendance>,
    bell: Arc<OwnedFd>,
}

/// How the serving of a VM's memory ended.
pub(crate) struct Attended {
    reason: EndReason,
    /// Kept open until the VM is gone.
    _uffd: Option<Uffd>,
}

impl Attended {
    /// There is nothing to serve, or nothing could be.
    pub(crate) fn without_server(reason: EndReason) -> Self {
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

impl Process {
    /// Starts the VMM, and gets its userfaultfds where they were asked for.
    ///
    /// # Cancel-Safety
    /// Cancelling kills what was started.
    pub(crate) async fn spawn(launch: Launch) -> io::Result<(Self, Option<Userfaultfds>)> {
        Self::spawn_within(launch, patient(START_TIMEOUT)).await
    }

    async fn spawn_within(launch: Launch, within: Duration) -> io::Result<(Self, Option<Userfaultfds>)> {
        let console = Console::default();
        let (output, receiver) = pipe::pipe()?;
        tokio::spawn(console.clone().drain(receiver));
        let output = output.into_blocking_fd()?;
        let (attend, attending) = launch.is_served.then(attendance).transpose()?.unzip();
        let (spawned, ready) = oneshot::channel();
        let (exit, exited) = watch::channel(None);
        let given_up = Arc::new(OnceLock::new());
        let (starting, program) = (Starting::default(), launch.program.clone());
        let (begun, why) = (starting.clone_for_thread(), Arc::clone(&given_up));
        std::thread::Builder::new()
            .name("wrenn-vm".to_owned())
            .spawn(move || run(launch, output, begun, spawned, attending, &exit, &why))?;
        let late = |_| {
            let text = format!("{} did not start within {within:?}, and was killed", program.display());
            io::Error::new(io::ErrorKind::TimedOut, text)
        };
        let Spawned { pid, pidfd, uffds } = timeout(within, ready).await.map_err(late)?.map_err(io::Error::other)??;
        starting.has_started();
        Ok((Self { pidfd: Arc::new(pidfd), pid, console, attend, exited, given_up }, uffds))
    }

    /// Gives the VM's thread its work. Without work the thread only waits for the VMM's end.
    pub(crate) fn attend(&mut self, work: Attendance) {
        if let Some(Attend { work: attend, bell }) = self.attend.take() {
            // Either fails only for a VM that has ended, which `exited` tells.
            let _ = attend.send(work);
            let _ = rustix::io::write(&bell, &[1; 8]);
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

    /// Whether the VMM has ended, as the kernel knows it: its thread is told a moment later.
    pub(crate) fn has_ended(&self) -> bool {
        let mut pidfd = [PollFd::new(&*self.pidfd, PollFlags::IN)];
        // An error would be a bug; a VMM of which nothing is known is not relied on.
        poll(&mut pidfd, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_or(true, |ready| ready > 0)
    }

    /// Kills the VMM and waits until it is reaped. Only a process that hangs in the kernel takes longer than
    /// [`REAP_TIMEOUT`], and is then left to the kernel.
    pub(crate) async fn kill(&mut self) {
        self.send_kill();
        self.attend = None;
        // An error of the wait itself means that the thread is gone, and with it the VMM.
        if timeout(patient(REAP_TIMEOUT), self.exited.wait_for(Option::is_some)).await.is_err() {
            tracing::error!(pid = self.pid.as_raw(), "the VMM was killed, and is not gone after {REAP_TIMEOUT:?}");
        }
    }

    /// Kills a VMM that does not do what it was asked for, for instance since it has stopped answering. The reason is
    /// reported as the VMM's end.
    pub(crate) async fn give_up(&mut self, during: &'static str, why: String) -> Error {
        // The first reason is kept, since later ones follow from it.
        let _ = self.given_up.set(why);
        self.kill().await;
        self.ended(during, "it does not answer").await
    }

    /// The error of a step that the VMM's end cut short. It waits a moment for the end to be known; where it is not
    /// known by then, `else_said` is the reason.
    pub(crate) async fn ended(&self, during: &'static str, else_said: &str) -> Error {
        let mut exited = self.exited.clone();
        let exit = match timeout(END_IS_SEEN, exited.wait_for(Option::is_some)).await {
            Ok(Ok(exit)) => exit.as_ref().map(Exit::to_string),
            Ok(Err(_)) | Err(_) => None,
        };
        let exit = exit.unwrap_or_else(|| else_said.to_owned());
        Error::VmEnded { during, exit, console: self.console.tail(CONSOLE_LINES) }
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

/// A VMM that is being started. Dropping it kills the VMM, so that a start that hangs does not hang its thread for
/// ever.
#[derive(Default)]
struct Starting(Arc<OnceLock<OwnedFd>>);

impl Starting {
    /// Where the thread puts the VMM's pidfd.
    fn clone_for_thread(&self) -> Arc<OnceLock<OwnedFd>> {
        Arc::clone(&self.0)
    }

    /// Ends the guard, since the start is done and the VMM belongs to a [`Process`].
    fn has_started(mut self) {
        self.0 = Arc::default();
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(pidfd) = self.0.get() {
            // `ESRCH`, its only failure, means that there is nothing left to kill.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

fn run(
    mut launch: Launch,
    output: OwnedFd,
    begun: Arc<OnceLock<OwnedFd>>,
    spawned: oneshot::Sender<io::Result<Spawned>>,
    attending: Option<Attending>,
    exit: &watch::Sender<Option<Exit>>,
    given_up: &OnceLock<String>,
) {
    let exit_code = launch.exit_code;
    // The reservation of the VMM's user is kept until the VMM is gone.
    let _identity = launch.identity.clone();
    let entered = launch.enter.take().map_or(Ok(()), |enter| enter());
    let started = entered.and_then(|()| start(launch, output, &begun));
    drop(begun);
    let watched = started.and_then(|(child, ready)| Ok((ready.pidfd.try_clone()?, child, ready)));
    let (pidfd, mut child) = match watched {
        Ok((pidfd, child, ready)) => {
            if spawned.send(Ok(ready)).is_err() {
                drop(Reaped::new(child));
                return;
            }
            (pidfd, child)
        }
        Err(error) => {
            let _ = spawned.send(Err(error));
            return;
        }
    };
    let end = attending.and_then(|attending| attending.wait(pidfd)).map(|work| work());
    if end.as_ref().is_some_and(|end| !matches!(end.reason, EndReason::AllResident)) {
        // A guest whose memory is not served waits for ever, or reads zeros. So the VMM is killed before the
        // userfaultfd, which `end` holds, is closed.
        let _ = child.kill();
    }
    let status = child.wait();
    exit.send_replace(Some(match (given_up.get(), end) {
        (Some(why), _) => Exit::GivenUp(why.clone()),
        (None, Some(Attended { reason: EndReason::Failed(error), .. })) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the page server failed; its VM was killed");
            Exit::PageServer(Arc::new(error))
        }
        (None, _) => Exit::Process(describe(&status, exit_code)),
    }));
}

fn attendance() -> io::Result<(Attend, Attending)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (give, work) = mpsc::channel();
    Ok((Attend { work: give, bell: Arc::clone(&bell) }, Attending { work, bell }))
}

impl Attending {
    /// Waits for work, or for the end of a VMM that gets none. `None` where there will be no work.
    fn wait(self, pidfd: OwnedFd) -> Option<Attendance> {
        loop {
            let mut fds = [PollFd::new(&self.bell, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut fds, None) {
                // Who rings has sent the work before, and whoever gives up without is killing the VMM.
                Ok(_) if !fds[0].revents().is_empty() => return self.work.try_recv().ok(),
                Ok(_) if !fds[1].revents().is_empty() => return None,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "a VMM cannot be waited for");
                    return None;
                }
            }
        }
    }
}

fn describe(status: &io::Result<ExitStatus>, meaning: fn(i32) -> Option<&'static str>) -> String {
    match status {
        Ok(status) if status.signal() == Some(libc::SIGKILL) => format!("{status}: {KILLED}"),
        Ok(status) => match status.code().and_then(meaning) {
            Some(meaning) => format!("{status}: {meaning}"),
            None => status.to_string(),
        },
        Err(error) => format!("its status is unknown: {error}"),
    }
}

/// A start takes some 40 ms, and 80 with a jailer; the rest is for a machine under load, and for a program on a disk
/// that has to wake up.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// A killed process is gone in milliseconds, and later where it has much memory to free.
const REAP_TIMEOUT: Duration = Duration::from_secs(30);
/// From the end of a VMM's monitor to that of its process.
const END_IS_SEEN: Duration = Duration::from_secs(2);
/// What the kernel says of it is in its own log alone.
const KILLED: &str = "somebody killed it, or the kernel did, which had no memory left (`dmesg` tells, and a host with more \
                      memory or fewer sandboxes helps)";
/// What an error shows of a console.
const CONSOLE_LINES: usize = 8;
#[cfg(test)]
mod tests;
