//! What a process does, and how it ends.

use std::fmt;

use bytes::Bytes;

use crate::agent::client::AgentClient;
use crate::agent::error::AgentError;
use crate::agent::process::{ProcessEvent, ProcessStream};
use crate::error::{Error, Result};
use crate::exec::signal::Signal;

/// The size of a terminal, in characters.
///
/// ```
/// use wrenn_core::PtySize;
///
/// assert_eq!(PtySize::default(), PtySize { columns: 80, rows: 24 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PtySize {
    /// How many characters a line has, 1 or more.
    pub columns: u16,
    /// How many lines the terminal has, 1 or more.
    pub rows: u16,
}

impl Default for PtySize {
    /// 80 columns and 24 rows, the size of a VT100.
    fn default() -> Self {
        Self { columns: 80, rows: 24 }
    }
}

/// How a process in the guest ended.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// use wrenn_core::Signal;
///
/// let status = sandbox.exec("exit 3").await?.status;
/// assert_eq!((status.code(), status.signal(), status.success()), (Some(3), None, false));
///
/// let status = sandbox.exec("kill -TERM $$").await?.status;
/// assert_eq!((status.code(), status.signal()), (None, Some(Signal::TERM)));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitStatus {
    pub(crate) code: Option<i32>,
    signal: Option<Signal>,
    description: String,
}

impl ExitStatus {
    /// Whether the process exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// The exit code; `None` where a signal ended the process.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// The signal that ended the process; `None` where it exited, or where the guest's words for the end are not known.
    #[must_use]
    pub fn signal(&self) -> Option<Signal> {
        self.signal
    }

    /// Reads what the agent tells of an end.
    fn new(exit_code: i32, exited: bool, description: String) -> Self {
        let words = description.strip_prefix("signal: ").filter(|_| !exited);
        let signal = words.and_then(|words| Signal::from_words(words.trim_end_matches(CORE_DUMPED)));
        Self { code: exited.then_some(exit_code), signal, description }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// What a running command did.
///
/// ```
/// use wrenn_core::Event;
///
/// fn text(event: &Event) -> String {
///     match event {
///         Event::Stdout(bytes) | Event::Stderr(bytes) | Event::Pty(bytes) => String::from_utf8_lossy(bytes).into(),
///         Event::Lost { bytes } => format!("[{bytes} bytes are lost]"),
///         Event::Exit(status) => format!("[{status}]"),
///         other => format!("{other:?}"),
///     }
/// }
///
/// assert_eq!(text(&Event::Stdout("hello".into())), "hello");
/// assert_eq!(text(&Event::Lost { bytes: 7 }), "[7 bytes are lost]");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The command wrote to its standard output.
    Stdout(Bytes),
    /// The command wrote to its standard error.
    Stderr(Bytes),
    /// The command wrote to its terminal.
    Pty(Bytes),
    /// Output is lost: the command wrote more than the guest keeps while nobody was connected to read it, which is 1
    /// MiB at most. The next events come after this gap.
    Lost {
        /// The length of the gap, in bytes.
        bytes: u64,
    },
    /// The command ended. No event follows.
    Exit(ExitStatus),
}

pub(crate) async fn started(stream: &mut ProcessStream, agent: &AgentClient) -> Result<u32> {
    match stream.next(agent).await.map_err(Error::command)? {
        Some(ProcessEvent::Start { pid }) => Ok(pid),
        _ => Err(Error::command(AgentError::ConnectionLost { source: None })),
    }
}

pub(crate) async fn next(stream: &mut ProcessStream, agent: &AgentClient) -> Result<Event> {
    match stream.next(agent).await.map_err(Error::command)? {
        Some(ProcessEvent::Stdout(bytes)) => Ok(Event::Stdout(bytes)),
        Some(ProcessEvent::Stderr(bytes)) => Ok(Event::Stderr(bytes)),
        Some(ProcessEvent::Pty(bytes)) => Ok(Event::Pty(bytes)),
        Some(ProcessEvent::Lost { bytes }) => Ok(Event::Lost { bytes }),
        Some(ProcessEvent::End { exit_code, exited, status }) => {
            Ok(Event::Exit(ExitStatus::new(exit_code, exited, status)))
        }
        Some(ProcessEvent::Start { .. }) | None => Err(Error::command(AgentError::ConnectionLost { source: None })),
    }
}

pub(crate) const RUN: &str = "run a command";

const CORE_DUMPED: &str = " (core dumped)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_exit_or_a_signal() {
        let status = |code, exited, words: &str| ExitStatus::new(code, exited, words.to_owned());
        assert_eq!(
            (status(3, true, "exit status 3").code(), status(3, true, "exit status 3").signal()),
            (Some(3), None)
        );
        let killed = status(-1, false, "signal: killed");
        assert_eq!(
            (killed.code(), killed.signal(), killed.to_string()),
            (None, Some(Signal::KILL), "signal: killed".to_owned())
        );
        assert_eq!(status(-1, false, "signal: segmentation fault (core dumped)").signal(), Some(Signal::SEGV));
        assert_eq!(status(-1, false, "unknown").signal(), None);
    }
}
