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

/// A process in a guest, running or ended. Dropping the handle leaves the process running, until its sandbox ends.
///
/// The handle keeps its sandbox alive, and so do its halves. A connection to the guest that breaks is made again. After
/// a pause the process goes on in the sandbox that was resumed, and [`reattach`](Self::reattach) goes on with the
/// process there. In both cases the output continues where it stopped. The guest keeps the newest 1 MiB of the output
/// that was not read, and less where many processes write much. No byte that the guest keeps is lost or repeated, and
/// [`Event::Lost`] tells how many bytes it no longer kept.
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
/// The output is read as [events](Self::next_event), in the order in which the guest's agent saw it; or from two
/// halves, which can be read while the input is written:
///
/// ```no_run
/// # type Demo = Result<(), Box<dyn std::error::Error>>;
/// # async fn demo(sandbox: wrenn_core::Sandbox, mut source: tokio::fs::File) -> Demo {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
///
/// let mut child = sandbox.command("gzip").stdin_piped().spawn().await?;
/// let mut stdin = child.take_stdin().expect("it is piped");
/// let mut stdout = child.take_stdout().expect("it was not taken before");
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
    /// The kind of the standard input, until it is taken; `None` where there is none.
    stdin: Option<InputKind>,
    input: InputKind,
    /// The time-out that the process was started with; `None` for a process that was attached to.
    timeout: Option<Duration>,
    output_limit_bytes: usize,
    began: Instant,
    /// Events that `try_wait` has read, for the next calls of `next_event`.
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

    /// Notes the limits that the process was started with.
    pub(super) fn with_limits(mut self, began: Instant, timeout: Option<Duration>, output_limit_bytes: usize) -> Self {
        (self.began, self.timeout, self.output_limit_bytes) = (began, timeout, output_limit_bytes);
        self
    }

    /// The process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How much of the output has come to this handle, in bytes, standard output and error together.
    /// [`Sandbox::attach_from`] takes it to go on from there. Where halves were taken, it counts the pieces too that
    /// wait in a half to be read.
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

    /// Goes on with the process where this handle stopped, in the resumed sandbox, or in the same sandbox after an
    /// error. Input, signals and the halves that were taken use that sandbox from now on. The pause does not count
    /// against the process's time-out. A fork of the sandbox has a process of its own: [`Sandbox::attach`] gives a
    /// handle to that.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the sandbox has no such process: it is another sandbox, or the process ended more than
    /// ten minutes ago. [`Error::InvalidInput`] where the process has written less than this handle has read, since the
    /// sandbox was resumed from an earlier pause: use [`Sandbox::attach`]. [`Error::InvalidState`] where the sandbox
    /// does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the handle as it was, and the call can be repeated. Reads from halves that were taken may fail
    /// until then.
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

    /// Waits for the next event of the process; `None` after [`Event::Exit`]. A process whose output is not read waits.
    ///
    /// # Errors
    /// [`Error::InvalidState`] or [`Error::VmEnded`] as soon as the sandbox no longer runs; after a pause
    /// [`reattach`](Self::reattach) goes on. [`Error::CommandTimedOut`], without output, where the process was killed
    /// at its time-out; for a process that was attached to, [`Error::Agent`] with
    /// [`AgentError::TimedOut`](crate::AgentError::TimedOut). [`Error::Agent`] where the guest could not be reached or
    /// answered nothing for 30 s; another call tries again. [`Error::InvalidInput`] where a half was taken.
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

    /// Waits for the end of the process. Output is discarded, except that of a half that was taken. The standard input
    /// is closed first, as [`std::process::Child::wait`] does, unless it was taken, is a terminal, or the process was
    /// attached to.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event), but halves may have been taken.
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

    /// The exit status, if the process has ended and all of its output has come; `None` otherwise. It never waits.
    ///
    /// Up to 1 MiB of output is kept for [`next_event`](Self::next_event). Where there is more, the end is not seen
    /// before some of it is read. Where a half was taken, output is not kept: that of a half that was not taken is
    /// discarded.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event), but halves may have been taken.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if let Source::Halves(halves) = &self.source {
            let ended = halves.wait().now_or_never().transpose();
            return ended.map_err(|error| Collected::new(0).timed_out(error, self.timeout));
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

    /// Waits for the end of the process, and collects what it writes from now on, up to
    /// [`Command::output_limit`](crate::Command::output_limit) of each stream. The standard input is closed first, as
    /// [`wait`](Self::wait) does.
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
                    if let Err(failed) = self.kill().await {
                        tracing::debug!(pid = self.pid, error = &failed as &dyn std::error::Error, "it was not killed");
                    }
                    return Err(error);
                }
            }
        };
        Ok(Output { status, stdout: collected.stdout, stderr: collected.stderr, duration: self.began.elapsed() })
    }

    /// The writer to the standard input, or to the terminal; `None` where the process has none, or where it was taken
    /// before.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        let kind = self.stdin.take()?;
        Some(ChildStdin::new(Arc::clone(&self.link), self.pid, kind))
    }

    /// The reader of the standard output, or of all that the process writes to its terminal; `None` where it was taken
    /// before, or where reading from the other half has begun.
    ///
    /// Take every half that you want before you read from one. The output for a half that was not taken by then is
    /// discarded. From this call on, [`next_event`](Self::next_event) is refused.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.halves().take(Which::Stdout).map(ChildStdout::new)
    }

    /// The reader of the standard error; `None` where it was taken before. See [`take_stdout`](Self::take_stdout).
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
            // The process has ended, or has closed its input.
            Err(Error::Agent { source, .. }) if is_closed(&source) => Ok(()),
            closed => closed,
        }
    }

    /// Writes to the standard input of the process, or to its terminal. Returns when all of `bytes` is in the guest's
    /// pipe.
    ///
    /// # Errors
    /// [`Error::Agent`] where the process has no standard input, has closed it, or has ended: see
    /// [`Command::stdin_piped`](crate::Command::stdin_piped). [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave a part of `bytes` written.
    pub async fn write_stdin(&self, bytes: impl Into<Bytes>) -> Result<()> {
        let sandbox = self.link.sandbox();
        let write = sandbox.agent().send_input(self.pid, self.input, bytes.into());
        sandbox.while_running(RUN, async { write.await.map_err(Error::agent("write to a command")) }).await
    }

    /// Closes the standard input of the process. A terminal cannot be closed: write the character 4 (Ctrl-D) to it.
    ///
    /// # Errors
    /// As [`write_stdin`](Self::write_stdin).
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the input open, or closed.
    pub async fn close_stdin(&self) -> Result<()> {
        let sandbox = self.link.sandbox();
        let close = sandbox.agent().close_stdin(self.pid);
        sandbox.while_running(RUN, async { close.await.map_err(Error::agent("close a command's input")) }).await
    }

    /// Resizes the terminal of the process.
    ///
    /// # Errors
    /// [`Error::Agent`] where the process has no terminal or has ended: see [`Command::pty`](crate::Command::pty).
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the terminal with the old size, or the new one.
    pub async fn resize(&self, size: PtySize) -> Result<()> {
        let sandbox = self.link.sandbox();
        let resize = sandbox.agent().resize(self.pid, (size.columns, size.rows));
        sandbox.while_running(RUN, async { resize.await.map_err(Error::agent("resize a terminal")) }).await
    }

    /// Sends a signal to the process and its group. [`Signal::KILL`] reaches everything that the process has started.
    ///
    /// # Errors
    /// [`Error::Agent`] where the process has ended, [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave the signal sent.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let sandbox = self.link.sandbox();
        let send = sandbox.agent().signal(self.pid, signal.number());
        sandbox.while_running(RUN, async { send.await.map_err(Error::agent("signal a command")) }).await
    }

    /// Kills the process, and everything that it has started.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    ///
    /// # Cancel-Safety
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
