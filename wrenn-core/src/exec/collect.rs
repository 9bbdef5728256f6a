//! A command that is run to its end, and what it wrote.

#[cfg(test)]
mod collect_tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinError;

use crate::agent::client::AgentClient;
use crate::agent::error::AgentError;
use crate::agent::process::{ProcessSpec, ProcessStream, Signal};
use crate::error::{Error, Result};
use crate::exec::event::{Event, ExitStatus, next, started};

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
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let began = begin(agent, spec).await;
    let (mut stream, mut guard) = began.map_err(|error| timed_out(error, timeout, Vec::new(), Vec::new()))?;
    let status = loop {
        match next(&mut stream, agent).await {
            Ok(Event::Stdout(bytes) | Event::Pty(bytes)) => stdout.extend_from_slice(&bytes),
            Ok(Event::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
            Ok(Event::Lost { bytes }) => return Err(Error::OutputLost { bytes, stdout, stderr }),
            Ok(Event::Exit(status)) => break status,
            Err(error) => return Err(timed_out(error, timeout, stdout, stderr)),
        }
        if stdout.len() > limit_bytes || stderr.len() > limit_bytes {
            stdout.truncate(limit_bytes);
            stderr.truncate(limit_bytes);
            return Err(Error::OutputTooLong { limit_bytes, stdout, stderr });
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
                if let Err(error) = agent.signal(pid, Signal::Kill).await {
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
