//! A process in a guest, in the manner of [`std::process::Child`].

#[cfg(test)]
mod child_tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;

use crate::agent::process::{InputKind, ProcessStream};
use crate::error::{Error, Result};
use crate::exec::collect::{Collected, OUTPUT_LIMIT_BYTES, Output, is_closed};
use crate::exec::event::{Event, ExitStatus, PtySize, RUN, next, started};
use crate::exec::signal::Signal;
use crate::process::input::ChildStdin;
use crate::process::link::Link;
use crate::process::output::{ChildStderr, ChildStdout, Halves, Which};
use crate::sandbox::handle::Sandbox;

/// A process that runs, or has run. Dropping it leaves the process running: its sandbox ends it.
///
/// It keeps its sandbox alive, as its halves do. It outlives what is between it and the process: a connection that breaks is
/// made again. After a pause the process goes on in the sandbox that was resumed, and [`reattach`](Self::reattach) goes on
/// with it. Either way the output continues where it was, and no byte is lost or repeated as long as the guest keeps it: what
/// it keeps for whoever comes back is the newest 1 MiB, less where many processes write much. What is lost is told as
/// [`Event::Lost`].
///
/// ```no_run
/// # async fn demo(sandbox: wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let mut child = sandbox.command("make").arg("-j4").spawn().await?;
/// child.next_event().await?;
/// let sandbox = sandbox.pause().await?.resume().await?;
/// child.reattach(&sandbox).await?;
/// println!("{}", child.wait().await?);
/// # Ok(()) }
/// ```
///
/// Its output is read as [events](Self::next_event), in the order in which the guest's agent saw it; or from two halves, which
/// run together with its input:
///
/// ```no_run
/// # async fn demo(sandbox: wrenn_core::Sandbox, mut source: tokio::fs::File) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
///
/// let mut child = sandbox.command("gzip").stdin_piped().spawn().await?;
/// let (mut stdin, mut stdout) = (child.take_stdin().expect("it is piped"), child.take_stdout().expect("nobody has it"));
/// let write = async { copy(&mut source, &mut stdin).await.and(stdin.shutdown().await) };
/// let mut packed = Vec::new();
/// tokio::try_join!(write, stdout.read_to_end(&mut packed))?;
/// assert!(child.wait().await?.success());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Child {
    link: Arc<Link>,
    source: Source,
    pid: u32,
    /// Whether it has any, for whoever takes it.
    stdin: Option<InputKind>,
    input: InputKind,
    /// What it was started with, where that is known.
    timeout: Option<Duration>,
    output_limit_bytes: usize,
    began: Instant,
    /// What was read before anybody asked for it.
    ahead: VecDeque<Event>,
    status: Option<ExitStatus>,
}

/// Where the output goes.
#[derive(Debug)]
enum Source {
    Events(Box<ProcessStream>),
    Halves(Halves),
}

impl Child {
    /// Waits for the first event of a stream, which is the start.
    pub(crate) async fn of(sandbox: &Sandbox, mut stream: ProcessStream, stdin: Option<InputKind>) -> Result<Self> {
        let began = Instant::now();
        let pid = sandbox.while_running(RUN, started(&mut stream, sandbox.agent()).boxed()).await?;
        Ok(Self {
            link: Arc::new(Link::new(sandbox)),
            source: Source::Events(Box::new(stream)),
            pid,
            stdin,
            input: stdin.unwrap_or(InputKind::Pipe),
            timeout: None,
            output_limit_bytes: OUTPUT_LIMIT_BYTES,
            began,
            ahead: VecDeque::new(),
            status: None,
        })
    }

    /// With the limits that it was started with.
    pub(super) fn with_limits(mut self, began: Instant, timeout: Option<Duration>, output_limit_bytes: usize) -> Self {
        (self.began, self.timeout, self.output_limit_bytes) = (began, timeout, output_limit_bytes);
        self
    }

    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How much of its output has come, in bytes, standard output and error together: where
    /// [`Sandbox::attach_from`] goes on from. Of what halves have not read yet a little has come, too.
    #[must_use]
    pub fn offset(&self) -> u64 {
        match &self.source {
            Source::Events(stream) => {
                let ahead = |event: &Event| match event {
                    Event::Stdout(bytes) | Event::Stderr(bytes) | Event::Pty(bytes) => bytes.len() as u64,
                    Event::Lost { bytes } => *bytes,
                    Event::Exit(_) => 0,
                };
                stream.offset().saturating_sub(self.ahead.iter().map(ahead).fold(0, u64::saturating_add))
            }
            Source::Halves(halves) => halves.offset(),
        }
    }

    /// Goes on with the process in a sandbox that was resumed, where this handle stopped, or in the same one after an error.
    /// Input, signals and halves that were taken go there from now on. The pause does not count against the process's
    /// time-out. In a fork of the sandbox the same process is another one: [`Sandbox::attach`] gives a handle of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the sandbox has no such process: it is another sandbox, or the process ended more than
    /// ten minutes ago. [`Error::InvalidInput`] where the process has not come that far, in a sandbox that fell back to
    /// an earlier pause: attach with [`Sandbox::attach`]. [`Error::InvalidState`] where it does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the handle as it was; halves that were taken are told of an error, and this can be called again.
    pub async fn reattach(&mut self, sandbox: &Sandbox) -> Result<()> {
        match &mut self.source {
            Source::Events(stream) => {
                let reattach = async { stream.reattach(sandbox.agent()).await.map_err(Error::command) };
                sandbox.while_running(RUN, reattach).await?;
            }
            Source::Halves(halves) => halves.reattach(sandbox).await?,
        }
        self.link.replace(sandbox);
        Ok(())
    }

    /// Waits for what it does next; `None` after [`Event::Exit`]. What nobody reads makes the command wait.
    ///
    /// # Errors
    /// [`Error::InvalidState`] as soon as the sandbox no longer runs; after a pause [`reattach`](Self::reattach) goes on.
    /// [`Error::CommandTimedOut`], without output, when it was killed because its time was up; for a process that was attached
    /// to, [`Error::Agent`] with [`AgentError::TimedOut`](crate::AgentError::TimedOut).
    /// [`Error::Agent`] where no connection has come about for 30 s, or the guest has been silent for that long; calling again
    /// tries again. [`Error::InvalidInput`] where a half was taken.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub async fn next_event(&mut self) -> Result<Option<Event>> {
        match self.ahead.pop_front() {
            Some(event) => Ok(Some(event)),
            None => self.read_event().await,
        }
    }

    async fn read_event(&mut self) -> Result<Option<Event>> {
        let Source::Events(stream) = &mut self.source else { return Err(taken()) };
        if stream.has_ended() {
            return Ok(None);
        }
        let sandbox = self.link.sandbox();
        let event = sandbox.while_running(RUN, next(stream, sandbox.agent()).boxed()).await;
        let event = event.map_err(|error| Collected::new(0).timed_out(error, self.timeout))?;
        if let Event::Exit(status) = &event {
            self.status = Some(status.clone());
        }
        Ok(Some(event))
    }

    /// Waits for the end, and discards what it writes until then and no half has. Closes its standard input first, as
    /// [`std::process::Child::wait`] does, unless that was taken, is a terminal, or the process was attached to.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event).
    ///
    /// # Cancel-Safety
    /// Cancelling loses output.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.close_unused_stdin().await?;
        if let Source::Halves(halves) = &self.source {
            return halves.wait().await.map_err(|error| Collected::new(0).timed_out(error, self.timeout));
        }
        while self.next_event().await?.is_some() {}
        self.status.clone().ok_or_else(|| Error::invalid("this command's end was not told"))
    }

    /// Its exit status, if it has ended and all that it wrote has come; `None` otherwise. What it wrote is kept for
    /// [`next_event`](Self::next_event), up to 1 MiB; a command that writes more is not seen to end before that is read.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event).
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if let Source::Halves(halves) = &self.source {
            return halves.wait().now_or_never().transpose();
        }
        let mut ahead_bytes: usize = self.ahead.iter().map(length).sum();
        while self.status.is_none() && ahead_bytes < AHEAD_BYTES_MAX {
            let Some(event) = self.read_event().now_or_never() else { return Ok(None) };
            let Some(event) = event? else { break };
            ahead_bytes += length(&event);
            self.ahead.push_back(event);
        }
        Ok(self.status.clone())
    }

    /// Waits for the end, and collects what it writes from now on, up to [`Command::output_limit`](crate::Command::output_limit)
    /// a stream. Closes its standard input first, as [`wait`](Self::wait) does.
    ///
    /// # Errors
    /// As [`Command::output`](crate::Command::output); [`Error::InvalidInput`] where a half was taken.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the process running.
    pub async fn wait_with_output(mut self) -> Result<Output> {
        if let Source::Halves(_) = &self.source {
            return Err(taken());
        }
        self.close_unused_stdin().await?;
        let mut collected = Collected::new(self.output_limit_bytes);
        let status = loop {
            let event = match self.next_event().await {
                Ok(Some(event)) => event,
                Ok(None) => break self.status.clone().ok_or_else(|| Error::invalid("this command's end was taken"))?,
                Err(error) => return Err(collected.with_output(error)),
            };
            match collected.take(event) {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(error) => {
                    self.kill().await?;
                    return Err(error);
                }
            }
        };
        Ok(Output { status, stdout: collected.stdout, stderr: collected.stderr, duration: self.began.elapsed() })
    }

    /// Its standard input, or its terminal's; `None` where it has none, or that was taken before.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        let kind = self.stdin.take()?;
        Some(ChildStdin::new(Arc::clone(&self.link), self.pid, kind))
    }

    /// Its standard output, or all that it writes to its terminal; `None` where it was taken before.
    ///
    /// Take both halves that you want before you read from one: from then on what nobody has taken is discarded, and can no
    /// longer be taken. [`next_event`](Self::next_event) is refused.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.halves().take(Which::Stdout).map(ChildStdout::new)
    }

    /// Its standard error; `None` where it was taken before. See [`take_stdout`](Self::take_stdout).
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.halves().take(Which::Stderr).map(ChildStderr::new)
    }

    fn halves(&mut self) -> &Halves {
        if let Source::Events(stream) = &mut self.source {
            let stream = stream.take_over();
            let halves = Halves::new(Arc::clone(&self.link), stream, std::mem::take(&mut self.ahead));
            self.source = Source::Halves(halves);
        }
        match &self.source {
            Source::Halves(halves) => halves,
            Source::Events(_) => unreachable!("they were made just now"),
        }
    }

    async fn close_unused_stdin(&mut self) -> Result<()> {
        if self.stdin != Some(InputKind::Pipe) || self.status.is_some() {
            return Ok(());
        }
        match self.close_stdin().await {
            // It has ended, or has closed it.
            Err(Error::Agent { source, .. }) if is_closed(&source) => Ok(()),
            closed => closed,
        }
    }

    /// Writes to its standard input, or to its terminal.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has none: see [`Command::stdin_piped`](crate::Command::stdin_piped).
    ///
    /// # Cancel-Safety
    /// Cancelling may leave a part of it written.
    pub async fn write_stdin(&self, bytes: impl Into<Bytes>) -> Result<()> {
        let sandbox = self.link.sandbox();
        let write = sandbox.agent().send_input(self.pid, self.input, bytes.into());
        sandbox.while_running(RUN, async { write.await.map_err(Error::agent("write to a command")) }).await
    }

    /// Closes its standard input. A terminal stays open: write the character 4 (Ctrl-D) to it.
    ///
    /// # Errors
    /// As [`write_stdin`](Self::write_stdin).
    pub async fn close_stdin(&self) -> Result<()> {
        let sandbox = self.link.sandbox();
        let close = sandbox.agent().close_stdin(self.pid);
        sandbox.while_running(RUN, async { close.await.map_err(Error::agent("close a command's input")) }).await
    }

    /// Resizes its terminal.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has none: see [`Command::pty`](crate::Command::pty).
    pub async fn resize(&self, size: PtySize) -> Result<()> {
        let sandbox = self.link.sandbox();
        let resize = sandbox.agent().resize(self.pid, (size.columns, size.rows));
        sandbox.while_running(RUN, async { resize.await.map_err(Error::agent("resize a terminal")) }).await
    }

    /// Sends a signal to the process and its group. [`Signal::KILL`] reaches everything that the process has started.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has ended.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let sandbox = self.link.sandbox();
        let send = sandbox.agent().signal(self.pid, signal.number());
        sandbox.while_running(RUN, async { send.await.map_err(Error::agent("signal a command")) }).await
    }

    /// Kills it, and everything that it has started.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL).await
    }
}

fn length(event: &Event) -> usize {
    match event {
        Event::Stdout(bytes) | Event::Stderr(bytes) | Event::Pty(bytes) => bytes.len(),
        Event::Lost { .. } | Event::Exit(_) => 0,
    }
}

fn taken() -> Error {
    Error::invalid("this command's output was taken: read it from the half")
}

const AHEAD_BYTES_MAX: usize = 1 << 20;
