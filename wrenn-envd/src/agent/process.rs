//! Processes in the guest.
//!
//! ```text
//!  Service::start -> Launch::spawn -> Table::spawn -> Process::run --> Fanout::deliver --> a reader's stream
//!                                        ^                |  ^
//!                                        |        timeout v  | exit status
//!                                        +---- reap <- SIGCHLD
//! ```
//!
//! A process belongs to the table, not to the client that started it: its readers come and go. While there are readers
//! the slowest one sets the pace; while there are none, output is kept up to [`fanout::BACKLOG_BYTES_MAX`] and the
//! oldest is lost.

mod events;
mod fanout;
mod launch;
mod service;
mod table;

use std::{
    os::{fd::AsFd as _, unix::process::ExitStatusExt as _},
    pin::pin,
    process::ExitStatus,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use fanout::{Fanout, Finish, Output};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
pub(super) use service::Service;
pub(super) use table::Table;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::{Mutex, oneshot},
    time::{Instant, sleep_until},
};

use super::sys;
use crate::proto::process::ProcessConfig;

/// A process that was started here and has not ended.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    config: ProcessConfig,
    tag: Option<String>,
    stdin: Mutex<Option<pipe::Sender>>,
    fanout: Fanout,
    timed_out: AtomicBool,
    ended: AtomicBool,
}

/// The agent's ends of a process's output.
#[derive(Debug)]
struct Pipes {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

/// Why input could not be given to a process.
#[derive(Debug, thiserror::Error)]
enum InputError {
    #[error("its standard input is closed")]
    Closed,
    #[error("its standard input cannot be written to")]
    Broken(#[source] std::io::Error),
}

impl Process {
    /// Signals the process and everything in its group.
    fn signal_group(&self, signal: Signal) {
        // Once reaped the number may be another process's.
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        if let Ok(pid) = i32::try_from(self.pid) {
            // It can only have ended in the meantime.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// Kills the process and its group, and remembers that its time was up.
    fn time_out(&self) {
        self.timed_out.store(true, Ordering::Release);
        self.signal_group(Signal::SIGKILL);
    }

    /// Writes all of `bytes` to the process, at the process's own pace.
    ///
    /// # Cancel-Safety
    ///
    /// Not cancel-safe: a part of `bytes` may have been written.
    async fn send_stdin(&self, bytes: &[u8]) -> Result<(), InputError> {
        let mut stdin = self.stdin.lock().await;
        let writing = stdin.as_mut().ok_or(InputError::Closed)?.write_all(bytes).await;
        if writing.is_err() {
            *stdin = None;
        }
        writing.map_err(InputError::Broken)
    }

    async fn close_stdin(&self) {
        *self.stdin.lock().await = None;
    }

    /// Carries output to the readers until the process has ended and its output is delivered.
    async fn run(&self, pipes: Pipes, exit: oneshot::Receiver<ExitStatus>) -> Finish {
        let Pipes { mut stdout, mut stderr } = pipes;
        let (mut out, mut err) = (Some(&mut stdout), Some(&mut stderr));
        let (mut out_buffer, mut err_buffer) = (BytesMut::new(), BytesMut::new());
        let mut exit = pin!(exit);
        let mut ended: Option<Ended> = None;

        while ended.as_ref().is_none_or(|ended| !ended.is_drained(out.is_some(), err.is_some())) {
            tokio::select! {
                status = &mut exit, if ended.is_none() => {
                    self.ended.store(true, Ordering::Release);
                    let status = status.unwrap_or_else(|_| ExitStatus::from_raw(0));
                    let left = |pipe: Option<&&mut pipe::Receiver>| {
                        pipe.map_or(0, |pipe| sys::readable_bytes(pipe.as_fd()).unwrap_or(0))
                    };
                    ended = Some(Ended::new(status, left(out.as_ref()), left(err.as_ref())));
                }
                bytes = read(out.as_deref_mut(), &mut out_buffer), if out.is_some() => match bytes {
                    Some(bytes) => {
                        if let Some(ended) = &mut ended {
                            ended.out_left = ended.out_left.saturating_sub(bytes.len());
                        }
                        self.fanout.deliver(Output::Stdout(bytes)).await;
                    }
                    None => out = None,
                },
                bytes = read(err.as_deref_mut(), &mut err_buffer), if err.is_some() => match bytes {
                    Some(bytes) => {
                        if let Some(ended) = &mut ended {
                            ended.err_left = ended.err_left.saturating_sub(bytes.len());
                        }
                        self.fanout.deliver(Output::Stderr(bytes)).await;
                    }
                    None => err = None,
                },
                () = Ended::grace(ended.as_ref()) => {
                    if let Some(ended) = &mut ended {
                        ended.grace_is_over = true;
                    }
                }
            }
        }
        let status = ended.map_or_else(|| ExitStatus::from_raw(0), |ended| ended.status);
        Finish { status, timed_out: self.timed_out.load(Ordering::Acquire) }
    }
}

/// What is left to do for a process that has ended.
///
/// Its own output is all in the pipes by now, and is delivered in full. Somebody else who holds the pipes open, such as a
/// background process, gets [`GRACE`] to finish.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    out_left: usize,
    err_left: usize,
    grace_end: Instant,
    grace_is_over: bool,
}

impl Ended {
    fn new(status: ExitStatus, out_left: usize, err_left: usize) -> Self {
        Self { status, out_left, err_left, grace_end: Instant::now() + GRACE, grace_is_over: false }
    }

    /// Waits for the end of the grace, which is never for a process that runs.
    async fn grace(ended: Option<&Self>) {
        match ended {
            Some(Self { grace_end, grace_is_over: false, .. }) => sleep_until(*grace_end).await,
            _ => std::future::pending().await,
        }
    }

    fn is_drained(&self, out_is_open: bool, err_is_open: bool) -> bool {
        let done = |left: usize, is_open: bool| !is_open || (self.grace_is_over && left == 0);
        done(self.out_left, out_is_open) && done(self.err_left, err_is_open)
    }
}

/// The next bytes of a pipe; `None` at its end.
async fn read(pipe: Option<&mut pipe::Receiver>, buffer: &mut BytesMut) -> Option<Bytes> {
    let pipe = pipe?;
    buffer.reserve(CHUNK_BYTES);
    match pipe.read_buf(buffer).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(buffer.split().freeze()),
    }
}

/// How long others may hold a process's output open after its end.
const GRACE: Duration = Duration::from_millis(200);

/// Half a pipe: large enough to be cheap, small enough that a reader's queue stays small.
const CHUNK_BYTES: usize = 32 << 10;
