//! Commands in a guest, in the manner of [`std::process`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinError;

use crate::agent::{AgentClient, AgentError, InputKind, ProcessSpec, ProcessStream};
use crate::child::{Child, Event, ExitStatus, RUN, next, started};
use crate::sandbox::Sandbox;
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
    /// All of its standard output, or all that it wrote to its terminal.
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

/// The size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtySize {
    /// Characters a line, 1 or more.
    pub columns: u16,
    /// Lines, 1 or more.
    pub rows: u16,
}

impl Default for PtySize {
    /// What a terminal has always been: 80 columns, 24 rows.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
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

    /// Runs the command at a terminal: it writes [`Event::Pty`], reads what [`Child::write_stdin`] writes, and
    /// [`Child::resize`] changes the size. Default: pipes.
    #[must_use]
    pub fn pty(mut self, size: PtySize) -> Self {
        self.spec.pty = Some((size.columns, size.rows));
        self
    }

    /// Another name for the process, by which [`Sandbox::attach`] finds it. Default: none.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.spec.tag = Some(tag.into());
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
        let start = self.sandbox.agent().start(&self.spec);
        let watch = self.sandbox.watch_state();
        let stream = watch.while_running(RUN, async { start.await.map_err(Error::command) }).await?;
        let input = if self.spec.pty.is_some() { InputKind::Terminal } else { InputKind::Pipe };
        Child::of(&self.sandbox, stream, input).await
    }

    /// Runs the command to its end and collects what it writes.
    ///
    /// A command that fails is not an error: look at [`Output::status`].
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn); and [`Error::CommandTimedOut`], [`Error::OutputTooLong`], [`Error::OutputLost`], after
    /// which it is dead.
    ///
    /// # Cancel-Safety
    /// Cancelling kills the command.
    pub async fn output(self) -> Result<Output> {
        check_envs(&self.spec.envs)?;
        let agent = Arc::clone(self.sandbox.agent());
        let collected = collect(&agent, self.spec, self.timeout, self.output_limit_bytes);
        self.sandbox.watch_state().while_running(RUN, collected).await
    }
}

const OUTPUT_LIMIT_BYTES: usize = 16 << 20;

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
    spec.until_end = true;
    let (mut stream, mut guard) = begin(agent, spec).await?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = loop {
        match next(&mut stream, agent).await {
            Ok(Event::Stdout(bytes) | Event::Pty(bytes)) => stdout.extend_from_slice(&bytes),
            Ok(Event::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
            Ok(Event::Lost { bytes }) => return Err(Error::OutputLost { bytes }),
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

/// Starts a command that is killed unless somebody collects it. In a task of its own: whoever gave up while the answer was on
/// its way would know no number to kill it by.
async fn begin(agent: &Arc<AgentClient>, spec: ProcessSpec) -> Result<(ProcessStream, KillOnDrop)> {
    let agent = Arc::clone(agent);
    let began = tokio::spawn(async move {
        let mut stream = agent.start(&spec).await.map_err(Error::command)?;
        let pid = started(&mut stream, &agent).await?;
        Ok((stream, KillOnDrop { agent, pid: Some(pid) }))
    });
    match began.await.map_err(JoinError::try_into_panic) {
        Ok(began) => began,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime ends, and with it whoever waits here.
        Err(Err(_)) => std::future::pending().await,
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
