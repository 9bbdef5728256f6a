//! Commands in a guest, in the manner of [`std::process`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::agent::{AgentClient, AgentError, ProcessEvent, ProcessSpec, ProcessStream};
use crate::sandbox::{Sandbox, Watch};
use crate::{Error, Result};

/// A command to run in a sandbox.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// use wrenn_core::Event;
///
/// let mut child = sandbox.command("sort").arg("-r").stdin_piped().spawn().await?;
/// child.write_stdin("a\nb\n").await?;
/// child.close_stdin().await?;
/// while let Some(event) = child.next_event().await? {
///     if let Event::Stdout(bytes) = event {
///         print!("{}", String::from_utf8_lossy(&bytes));
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Command {
    sandbox: Sandbox,
    spec: ProcessSpec,
    timeout: Option<Duration>,
    output_limit_bytes: usize,
}

/// What a command that was collected wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// From the call to the end, as the host saw it.
    pub duration: Duration,
}

impl Output {
    /// Standard output as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stdout_utf8(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stderr_utf8(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// How a process in the guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    code: Option<i32>,
    description: String,
}

impl ExitStatus {
    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// What it exited with; `None` where a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.code
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// What a running command did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exit(ExitStatus),
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

impl Command {
    pub(crate) fn new(sandbox: Sandbox, program: String) -> Self {
        let spec = ProcessSpec { cmd: program, ..ProcessSpec::default() };
        Self { sandbox, spec, timeout: None, output_limit_bytes: OUTPUT_LIMIT_BYTES }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.spec.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.spec.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable for this command alone.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.envs.insert(name.into(), value.into());
        self
    }

    /// The working directory. Default: the user's home.
    #[must_use]
    pub fn current_dir(mut self, path: impl Into<String>) -> Self {
        self.spec.cwd = Some(path.into());
        self
    }

    /// The guest's user to run as. Default: `user`.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>) -> Self {
        self.spec.user = Some(name.into());
        self
    }

    /// Kills the command, and all of its process group, in the guest when it has run for this long. Default: never.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Gives the command a standard input that [`Child::write_stdin`] writes to. Default: an empty one.
    #[must_use]
    pub fn stdin_piped(mut self) -> Self {
        self.spec.stdin = true;
        self
    }

    /// How many bytes of each stream [`output`](Self::output) collects before it kills the command. Default: 16 MiB.
    /// It costs that much memory at the most.
    #[must_use]
    pub fn output_limit(mut self, bytes_max: usize) -> Self {
        self.output_limit_bytes = bytes_max;
        self
    }

    /// Starts the command.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a command, a user or a directory that is not there; [`Error::InvalidState`] where the
    /// sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling may leave the command running in the guest.
    pub async fn spawn(mut self) -> Result<Child> {
        check_envs(&self.spec.envs)?;
        self.spec.timeout = self.timeout;
        let agent = Arc::clone(self.sandbox.agent());
        let watch = self.sandbox.watch();
        let mut stream =
            watch.while_running(RUN, async { agent.start(&self.spec).await.map_err(Error::command) }).await?;
        let pid = watch.while_running(RUN, started(&mut stream)).await?;
        Ok(Child { agent, watch, stream, pid, ended: false })
    }

    /// Runs the command to its end and collects what it writes.
    ///
    /// A command that fails is not an error: look at [`Output::status`].
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); and [`Error::CommandTimedOut`], [`Error::OutputTooLong`], after which it is dead.
    ///
    /// # Cancel-Safety
    /// Cancelling kills the command.
    pub async fn output(self) -> Result<Output> {
        check_envs(&self.spec.envs)?;
        let agent = Arc::clone(self.sandbox.agent());
        let collected = collect(&agent, self.spec, self.timeout, self.output_limit_bytes);
        self.sandbox.watch().while_running(RUN, collected).await
    }
}

const RUN: &str = "run a command";
const OUTPUT_LIMIT_BYTES: usize = 16 << 20;

/// A command that runs, or has run. Dropping it leaves the command running: its sandbox ends it.
#[derive(Debug)]
pub struct Child {
    agent: Arc<AgentClient>,
    watch: Watch,
    stream: ProcessStream,
    pid: u32,
    ended: bool,
}

impl Child {
    /// Its process id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for what it does next; `None` after [`Event::Exit`]. What nobody reads makes the command wait.
    ///
    /// # Errors
    /// [`Error::InvalidState`] as soon as the sandbox no longer runs.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub async fn next_event(&mut self) -> Result<Option<Event>> {
        if self.ended {
            return Ok(None);
        }
        let event = self.watch.while_running(RUN, next(&mut self.stream)).await?;
        self.ended = matches!(event, Event::Exit(_));
        Ok(Some(event))
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

    /// Writes to its standard input.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has none: see [`Command::stdin_piped`].
    pub async fn write_stdin(&self, bytes: impl Into<Bytes>) -> Result<()> {
        let write = self.agent.send_stdin(self.pid, bytes.into());
        self.watch.while_running(RUN, async { write.await.map_err(Error::agent("write to a command")) }).await
    }

    /// Closes its standard input.
    ///
    /// # Errors
    /// As [`write_stdin`](Self::write_stdin).
    pub async fn close_stdin(&self) -> Result<()> {
        let close = self.agent.close_stdin(self.pid);
        self.watch.while_running(RUN, async { close.await.map_err(Error::agent("close a command's input")) }).await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Error::Agent`] where it has ended.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let signal = match signal {
            Signal::Term => crate::agent::Signal::Term,
            Signal::Kill => crate::agent::Signal::Kill,
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

/// A line for the guest's shell.
pub(crate) fn shell_spec(line: &str) -> ProcessSpec {
    ProcessSpec { cmd: "/bin/bash".to_owned(), args: vec!["-c".to_owned(), line.to_owned()], ..ProcessSpec::default() }
}

/// Runs a command to its end, within its limits.
pub(crate) async fn collect(
    agent: &Arc<AgentClient>,
    mut spec: ProcessSpec,
    timeout: Option<Duration>,
    limit_bytes: usize,
) -> Result<Output> {
    let started_at = Instant::now();
    spec.timeout = timeout;
    let mut stream = agent.start(&spec).await.map_err(Error::command)?;
    let pid = started(&mut stream).await?;
    let mut guard = KillOnDrop { agent: Arc::clone(agent), pid: Some(pid) };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = loop {
        match next(&mut stream).await {
            Ok(Event::Stdout(bytes)) => stdout.extend_from_slice(&bytes),
            Ok(Event::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
            Ok(Event::Exit(status)) => break status,
            Err(error) => return Err(timed_out(error, timeout, stdout, stderr)),
        }
        if stdout.len() > limit_bytes || stderr.len() > limit_bytes {
            return Err(Error::OutputTooLong { limit_bytes });
        }
    };
    guard.pid = None;
    if let Some(after) = timeout
        && status.code.is_none()
        && started_at.elapsed() >= after
    {
        return Err(Error::CommandTimedOut { after, stdout, stderr });
    }
    Ok(Output { status, stdout, stderr, duration: started_at.elapsed() })
}

fn timed_out(error: Error, timeout: Option<Duration>, stdout: Vec<u8>, stderr: Vec<u8>) -> Error {
    match (error, timeout) {
        (Error::Agent { source: AgentError::TimedOut { .. }, .. }, Some(after)) => {
            Error::CommandTimedOut { after, stdout, stderr }
        }
        (error, _) => error,
    }
}

async fn started(stream: &mut ProcessStream) -> Result<u32> {
    match stream.next().await.map_err(Error::command)? {
        Some(ProcessEvent::Start { pid }) => Ok(pid),
        _ => Err(Error::command(AgentError::ConnectionLost { source: None })),
    }
}

async fn next(stream: &mut ProcessStream) -> Result<Event> {
    match stream.next().await.map_err(Error::command)? {
        Some(ProcessEvent::Stdout(bytes)) => Ok(Event::Stdout(bytes)),
        Some(ProcessEvent::Stderr(bytes)) => Ok(Event::Stderr(bytes)),
        Some(ProcessEvent::End { exit_code, exited, status }) => {
            Ok(Event::Exit(ExitStatus { code: exited.then_some(exit_code), description: status }))
        }
        Some(ProcessEvent::Start { .. }) | None => Err(Error::command(AgentError::ConnectionLost { source: None })),
    }
}

/// Kills what nobody will collect any more.
struct KillOnDrop {
    agent: Arc<AgentClient>,
    pid: Option<u32>,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(pid) = self.pid else { return };
        let agent = Arc::clone(&self.agent);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = agent.signal(pid, crate::agent::Signal::Kill).await {
                    tracing::debug!(
                        pid,
                        error = &error as &dyn std::error::Error,
                        "an abandoned command was not killed"
                    );
                }
            });
        }
    }
}

pub(crate) fn check_envs(envs: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in envs {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(format!(
                "{name:?} cannot be an environment variable: a name is not empty and has no `=`, and neither it nor \
                 its value has a NUL"
            )));
        }
    }
    Ok(())
}
