//! A process in a guest, in the manner of [`std::process::Child`].

use crate::exec::event::Event;
use crate::exec::event::ExitStatus;
use crate::exec::event::RUN;
use crate::exec::event::next;
use crate::exec::event::started;
use std::sync::Arc;

use bytes::Bytes;

use crate::agent;
use crate::agent::client::AgentClient;
use crate::agent::process::{InputKind, ProcessStream};
use crate::error::{Error, Result};
use crate::exec::event::PtySize;
use crate::sandbox::alive::Watch;
use crate::sandbox::handle::Sandbox;

/// A process that runs, or has run. Dropping it leaves the process running: its sandbox ends it.
///
/// It outlives what is between it and the process. A connection that breaks is made again. After a pause the process goes
/// on in the sandbox that was resumed, and [`reattach`](Self::reattach) goes on with it. Either way the output continues
/// where it was, and no byte is lost or repeated as long as the guest keeps it: what it keeps for whoever comes back is
/// the newest 1 MiB, less where many processes write much. What is lost is told as [`Event::Lost`].
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
#[derive(Debug)]
pub struct Child {
    agent: Arc<AgentClient>,
    watch: Watch,
    stream: ProcessStream,
    pid: u32,
    input: InputKind,
}

impl Child {
    /// Waits for the first event of a stream, which is the start.
    pub(crate) async fn of(sandbox: &Sandbox, mut stream: ProcessStream, input: InputKind) -> Result<Self> {
        let agent = Arc::clone(sandbox.agent());
        let watch = sandbox.watch_state();
        let pid = watch.while_running(RUN, started(&mut stream, &agent)).await?;
        Ok(Self { agent, watch, stream, pid, input })
    }

    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How much of its output has come, in bytes, standard output and error together: where
    /// [`Sandbox::attach_from`] goes on from.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.stream.offset()
    }

    /// Goes on with the process in a sandbox that was resumed, where this handle stopped. Input and signals go there from
    /// now on. In a fork of the sandbox the same process is another one: [`Sandbox::attach`] gives a handle of its own.
    ///
    /// # Errors
    /// [`Error::NotFound`] where the sandbox has no such process: it is another sandbox, or the process ended more than
    /// ten minutes ago. [`Error::InvalidInput`] where the process has not come that far, in a sandbox that fell back to
    /// an earlier pause: attach with [`Sandbox::attach`]. [`Error::InvalidState`] where it does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the handle as it was.
    pub async fn reattach(&mut self, sandbox: &Sandbox) -> Result<()> {
        let (agent, watch) = (Arc::clone(sandbox.agent()), sandbox.watch_state());
        let reattach = self.stream.reattach(&agent);
        watch.while_running(RUN, async { reattach.await.map_err(Error::command) }).await?;
        (self.agent, self.watch) = (agent, watch);
        Ok(())
    }

    /// Waits for what it does next; `None` after [`Event::Exit`]. What nobody reads makes the command wait.
    ///
    /// # Errors
    /// [`Error::InvalidState`] as soon as the sandbox no longer runs; after a pause [`reattach`](Self::reattach) goes on.
    /// [`Error::Agent`] where no connection has come about for 30 s; calling again tries again.
    /// [`Error::CommandTimedOut`] is for [`Command::output`](crate::Command::output) alone: here a time-out ends it with a signal, or
    /// with [`AgentError::TimedOut`](crate::AgentError::TimedOut).
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub async fn next_event(&mut self) -> Result<Option<Event>> {
        if self.stream.has_ended() {
            return Ok(None);
        }
        self.watch.while_running(RUN, next(&mut self.stream, &self.agent)).await.map(Some)
    }

    /// Waits for the end, and discards what it writes until then.
    ///
    /// # Errors
    /// As [`next_event`](Self::next_event); [`Error::InvalidInput`] where the end was already told.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        while let Some(event) = self.next_event().await? {
            if let Event::Exit(status) = event {
                return Ok(status);
            }
        }
        Err(Error::invalid("this command's exit status was taken before"))
    }

    /// Writes to its standard input, or to its terminal.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has none: see [`Command::stdin_piped`](crate::Command::stdin_piped).
    ///
    /// # Cancel-Safety
    /// Cancelling may leave a part of it written.
    pub async fn write_stdin(&self, bytes: impl Into<Bytes>) -> Result<()> {
        let write = self.agent.send_input(self.pid, self.input, bytes.into());
        self.watch.while_running(RUN, async { write.await.map_err(Error::agent("write to a command")) }).await
    }

    /// Closes its standard input. A terminal stays open: write the character 4 (Ctrl-D) to it.
    ///
    /// # Errors
    /// As [`write_stdin`](Self::write_stdin).
    pub async fn close_stdin(&self) -> Result<()> {
        let close = self.agent.close_stdin(self.pid);
        self.watch.while_running(RUN, async { close.await.map_err(Error::agent("close a command's input")) }).await
    }

    /// Resizes its terminal.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has none: see [`Command::pty`](crate::Command::pty).
    pub async fn resize(&self, size: PtySize) -> Result<()> {
        let resize = self.agent.resize(self.pid, (size.columns, size.rows));
        self.watch.while_running(RUN, async { resize.await.map_err(Error::agent("resize a terminal")) }).await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has ended.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let signal = match signal {
            Signal::Term => agent::process::Signal::Term,
            Signal::Kill => agent::process::Signal::Kill,
        };
        let send = self.agent.signal(self.pid, signal);
        self.watch.while_running(RUN, async { send.await.map_err(Error::agent("signal a command")) }).await
    }

    /// Kills it.
    ///
    /// # Errors
    /// As [`signal`](Self::signal).
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::Kill).await
    }
}

/// A signal for [`Child::signal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// Asks the process to end.
    Term,
    /// Ends it.
    Kill,
}
