//! A command that is run to its end, and what it wrote.

#[cfg(test)]
mod collect_tests;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinError;

use crate::agent::client::AgentClient;
use crate::agent::error::AgentError;
use crate::agent::process::{InputKind, ProcessSpec, ProcessStream};
use crate::error::{Error, Result};
use crate::exec::event::{Event, ExitStatus, next, started};
use crate::exec::signal::Signal;

/// What a command wrote from its start to its end, and how it ended.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let output = sandbox.exec("echo out; echo err >&2; exit 3").await?;
/// assert_eq!((output.stdout_utf8().as_str(), output.stderr_utf8().as_str()), ("out\n", "err\n"));
/// assert_eq!(output.status.code(), Some(3));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How the command ended.
    pub status: ExitStatus,
    /// All of the command's standard output, or all that it wrote to its terminal.
    pub stdout: Vec<u8>,
    /// All of the command's standard error.
    pub stderr: Vec<u8>,
    /// How long the command took on the host's clock, from the call until its end was known.
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

/// A line for the guest's shell.
pub(crate) fn shell_spec(line: &str) -> ProcessSpec {
    ProcessSpec { cmd: "/bin/bash".into(), args: vec!["-c".into(), line.into()], ..ProcessSpec::default() }
}

/// Runs a command that reads nothing to its end, within its limits.
pub(crate) async fn collect(
    agent: &Arc<AgentClient>,
    spec: ProcessSpec,
    timeout: Option<Duration>,
    limit_bytes: usize,
) -> Result<Output> {
    collect_fed(agent, spec, None, timeout, limit_bytes).await
}

/// Runs a command to its end, within its limits. Its standard input is `input` and then ends, or is empty.
pub(crate) async fn collect_fed(
    agent: &Arc<AgentClient>,
    mut spec: ProcessSpec,
    input: Option<Bytes>,
    timeout: Option<Duration>,
    limit_bytes: usize,
) -> Result<Output> {
    let started_at = Instant::now();
    spec.timeout = timeout;
    spec.stdin = input.is_some();
    // A command with an input may wait for that input, so its output is not left in the guest until its end.
    spec.until_end = input.is_none();
    let mut collected = Collected::new(limit_bytes);
    let began = begin(agent, spec).await;
    let (mut stream, mut guard) = began.map_err(|error| collected.timed_out(error, timeout))?;
    let mut feeding = pin!(feed(agent, guard.pid, input));
    let status = loop {
        let event = tokio::select! {
            biased;
            event = next(&mut stream, agent) => event,
            error = &mut feeding => Err(error),
        };
        let event = event.map_err(|error| collected.timed_out(error, timeout))?;
        if let Some(status) = collected.take(event)? {
            break status;
        }
    };
    let Collected { stdout, stderr, .. } = collected;
    guard.pid = None;
    if let Some(after) = timeout
        && status.code.is_none()
        && started_at.elapsed() >= after
    {
        return Err(Error::CommandTimedOut { after, stdout, stderr });
    }
    Ok(Output { status, stdout, stderr, duration: started_at.elapsed() })
}

/// How much of each stream is collected by default.
pub(crate) const OUTPUT_LIMIT_BYTES: usize = 16 << 20;

/// The output of a command that was collected so far.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    limit_bytes: usize,
}

impl Collected {
    /// Begins empty, with a limit in bytes for each stream.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { stdout: Vec::new(), stderr: Vec::new(), limit_bytes }
    }

    /// Adds what an event brings; the status when it was the end.
    pub(crate) fn take(&mut self, event: Event) -> Result<Option<ExitStatus>> {
        match event {
            Event::Stdout(bytes) | Event::Pty(bytes) => self.stdout.extend_from_slice(&bytes),
            Event::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            Event::Lost { bytes } => {
                let (stdout, stderr) = self.taken();
                return Err(Error::OutputLost { bytes, stdout, stderr });
            }
            Event::Exit(status) => return Ok(Some(status)),
        }
        let limit_bytes = self.limit_bytes;
        if self.stdout.len() > limit_bytes || self.stderr.len() > limit_bytes {
            let (stdout, stderr) = self.taken();
            return Err(Error::OutputTooLong { limit_bytes, stdout, stderr });
        }
        Ok(None)
    }

    /// The error for the caller: where the agent reports the command's time-out, [`Error::CommandTimedOut`] with the
    /// output.
    pub(crate) fn timed_out(&mut self, error: Error, timeout: Option<Duration>) -> Error {
        match (error, timeout) {
            (Error::Agent { source: AgentError::TimedOut { .. }, .. }, Some(after)) => {
                let (stdout, stderr) = self.taken();
                Error::CommandTimedOut { after, stdout, stderr }
            }
            (error, _) => error,
        }
    }

    /// `error` with the output, where that is a command's time-out.
    pub(crate) fn with_output(&mut self, error: Error) -> Error {
        match error {
            Error::CommandTimedOut { after, .. } => {
                let (stdout, stderr) = self.taken();
                Error::CommandTimedOut { after, stdout, stderr }
            }
            error => error,
        }
    }

    fn taken(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.stdout.truncate(self.limit_bytes);
        self.stderr.truncate(self.limit_bytes);
        (std::mem::take(&mut self.stdout), std::mem::take(&mut self.stderr))
    }
}

/// Writes a command's input and closes it. It returns only where that fails.
async fn feed(agent: &AgentClient, pid: Option<u32>, input: Option<Bytes>) -> Error {
    let (Some(pid), Some(input)) = (pid, input) else { return std::future::pending().await };
    let fed = async {
        agent.send_input(pid, InputKind::Pipe, input).await?;
        agent.close_stdin(pid).await
    };
    match fed.await {
        // A command may end without reading its input.
        Ok(()) => std::future::pending().await,
        Err(error) if is_closed(&error) => std::future::pending().await,
        Err(error) => Error::agent("write to a command")(error),
    }
}

/// Whether a process no longer reads: it has ended, or has closed its input.
pub(crate) fn is_closed(error: &AgentError) -> bool {
    match error {
        AgentError::NotFound { .. } => true,
        AgentError::Refused { code, .. } => code == "failed_precondition",
        _ => false,
    }
}

/// Starts a command that is killed unless it is collected to its end. A task of its own starts it: a caller that is
/// cancelled while the answer is on its way does not know the process id, and the task can still kill the command.
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
        // The runtime ends, and so this caller ends too.
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Kills a command that is not collected to its end.
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
                if let Err(error) = agent.signal(pid, Signal::KILL.number()).await {
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

/// Refuses environment variables that cannot exist.
pub(crate) fn check_envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(envs: impl IntoIterator<Item = (N, V)>) -> Result<()> {
    for (name, value) in envs {
        let (name, value) = (name.as_ref().as_bytes(), value.as_ref().as_bytes());
        if name.is_empty() || name.iter().any(|byte| [b'=', 0].contains(byte)) || value.contains(&0) {
            return Err(Error::invalid(format!(
                "{:?} cannot be an environment variable: a name is not empty and has no `=`, and neither it nor its \
                 value has a NUL",
                String::from_utf8_lossy(name)
            )));
        }
    }
    Ok(())
}
