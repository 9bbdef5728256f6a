use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use bytes::Bytes;
use connectrpc::{ConnectError, client::ServerStream};
use tokio::time::{Instant, sleep};
use wrenn_envd::proto::process::{
    self as wire, ConnectResponse, ProcessEvent as WireEvent, StartResponse,
    process_event::{Event, data_event::Output},
    process_selector::Selector,
};

use crate::agent::client::AgentClient;
use crate::agent::connection::Answer;
use crate::agent::error::AgentError;
use crate::agent::words::shown;
use crate::patience::patient;

/// A process to start in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessSpec {
    /// A path, or a name that is looked up in the guest's `PATH`.
    pub(crate) cmd: OsString,
    pub(crate) args: Vec<OsString>,
    /// Added to the sandbox's environment.
    pub(crate) envs: BTreeMap<OsString, OsString>,
    /// Whether `envs` are all the variables that there are.
    pub(crate) env_clear: bool,
    /// Relative to the user's home; `None` for the agent's default.
    pub(crate) cwd: Option<OsString>,
    /// `None` for the agent's default user.
    pub(crate) user: Option<String>,
    /// Whether the process gets a pipe to read from; otherwise `/dev/null`.
    pub(crate) stdin: bool,
    /// The size of its terminal, in columns and rows; `None` for pipes.
    pub(crate) pty: Option<(u16, u16)>,
    /// How long the process may run before the guest kills it and its group, in whole milliseconds.
    pub(crate) timeout: Option<Duration>,
    /// Another name for the process, beside its pid.
    pub(crate) tag: Option<String>,
    /// Whether the caller only waits for the end of the process, so that the agent may send all of its events at its
    /// end.
    pub(crate) until_end: bool,
}

/// An event of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProcessEvent {
    Start {
        pid: u32,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    Pty(Bytes),
    /// Output that the guest no longer holds. The next events come after this gap.
    Lost {
        bytes: u64,
    },
    /// The end of the process, which is the last event.
    End {
        /// The exit code; -1 where a signal ended the process.
        exit_code: i32,
        /// Whether the process exited by itself.
        exited: bool,
        /// "exit status 3", or "signal: killed".
        status: String,
    },
}

/// A process that runs in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessEntry {
    pub(crate) pid: u32,
    pub(crate) tag: Option<String>,
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    pub(crate) cwd: Option<String>,
}

/// The kind of a process's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputKind {
    Pipe,
    Terminal,
    /// Not known, since the process was started by another handle.
    Unknown,
}

/// The events of one process. Dropping it leaves the process running.
///
/// ```text
///  start, attach -> attached --next--> an event
///                      |  ^
///       the connection |  | Connect, from the offset of what came last
///       breaks         v  |
///                     broken
/// ```
#[derive(Debug)]
pub(crate) struct ProcessStream {
    /// `None` once the connection has broken.
    messages: Option<Messages>,
    /// Known from the first event on.
    pid: Option<u32>,
    /// One past the last byte of output that came.
    offset: u64,
    /// When a process that the agent should have killed counts as out of reach.
    deadline: Option<Deadline>,
    /// When the guest was last seen to run.
    seen_at: Instant,
    /// Since when nothing has come since connections break.
    broken_since: Option<Instant>,
    ended: bool,
}

/// The end of a process's time-out on the host's clock, with the time that the agent may take to tell of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
}

impl Deadline {
    /// The deadline of a process that is started now with this time-out.
    pub(super) fn after(timeout: Option<Duration>) -> Option<Self> {
        let at = Instant::now().checked_add(timeout?)?.checked_add(patient(LATE_MAX))?;
        Some(Self { at })
    }

    /// How much time is left.
    pub(super) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The deadline after a pause: the guest, which has not run since `seen_at`, did not count that time.
    fn without_the_pause(self, seen_at: Instant) -> Option<Self> {
        Some(Self { at: self.at.checked_add(seen_at.elapsed())? })
    }
}

/// The two calls answer with the same events, in messages of different names.
#[derive(Debug)]
pub(super) enum Messages {
    Started(ServerStream<Answer, wire::__buffa::view::StartResponseView<'static>>),
    Attached(ServerStream<Answer, wire::__buffa::view::ConnectResponseView<'static>>),
}

impl Messages {
    /// The next event; `None` where the stream was closed.
    async fn next(&mut self) -> Result<Option<WireEvent>, ConnectError> {
        let event = match self {
            Self::Started(stream) => {
                stream.message::<StartResponse>().await?.map(|message| message.to_owned_message().event)
            }
            Self::Attached(stream) => {
                stream.message::<ConnectResponse>().await?.map(|message| message.to_owned_message().event)
            }
        };
        Ok(event.map(|event| event.into_option().unwrap_or_default()))
    }
}

impl ProcessStream {
    pub(super) fn new(messages: Messages, offset: u64, deadline: Option<Deadline>) -> Self {
        let seen_at = Instant::now();
        Self { messages: Some(messages), pid: None, offset, deadline, seen_at, broken_since: None, ended: false }
    }

    /// Moves the stream out, and leaves one that has ended.
    pub(crate) fn take_over(&mut self) -> Self {
        let seen_at = self.seen_at;
        let nothing =
            Self { messages: None, pid: None, offset: 0, deadline: None, seen_at, broken_since: None, ended: true };
        std::mem::replace(self, nothing)
    }

    /// How much of the process's output has come, in bytes, with what was lost.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Goes on with the agent of the resumed sandbox, in which the process has the same number. The pause does not
    /// count against the process's time-out.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling leaves it as it was.
    pub(crate) async fn reattach(&mut self, agent: &AgentClient) -> Result<(), AgentError> {
        if let Some(pid) = self.pid.filter(|_| !self.ended) {
            self.messages = Some(agent.connect_process(Selector::Pid(pid), self.offset).await?);
            self.broken_since = None;
            self.deadline = self.deadline.and_then(|deadline| deadline.without_the_pause(self.seen_at));
            self.seen_at = Instant::now();
        }
        Ok(())
    }

    /// The next event; `None` after the end. A process whose output is not read waits. A connection that breaks is made
    /// again, and nothing is lost or repeated.
    ///
    /// # Errors
    ///
    /// [`AgentError::TimedOut`] when the process was killed because its time was up. [`AgentError::Unresponsive`],
    /// [`AgentError::ConnectionLost`] or [`AgentError::NotReachable`] when it may run on unseen: the agent has not
    /// answered for a while, or has not told of the end of a process whose time is up.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling loses nothing.
    pub(crate) async fn next(&mut self, agent: &AgentClient) -> Result<Option<ProcessEvent>, AgentError> {
        self.seen_at = Instant::now();
        while !self.ended {
            let left = self.deadline.map(|deadline| deadline.left());
            let received = agent.bounded(left, self.receive(agent)).await;
            if matches!(received, Err(AgentError::Unresponsive { .. })) {
                // This connection may never work again, even if the guest answers later.
                self.messages = None;
            }
            self.seen_at = Instant::now();
            if let Some(event) = received?.event.map(|event| self.take(event)).transpose()?.flatten() {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    async fn receive(&mut self, agent: &AgentClient) -> Result<WireEvent, AgentError> {
        loop {
            let error = match (&mut self.messages, self.pid) {
                (Some(messages), _) => match messages.next().await {
                    Ok(Some(event)) => {
                        self.broken_since = None;
                        return Ok(event);
                    }
                    Ok(None) => AgentError::ConnectionLost { source: None },
                    Err(error) => error.into(),
                },
                // The process has not told its start yet, so its stream cannot be found again.
                (None, None) => return Err(AgentError::ConnectionLost { source: None }),
                (None, Some(pid)) => match agent.connect_process(Selector::Pid(pid), self.offset).await {
                    Ok(messages) => {
                        self.messages = Some(messages);
                        continue;
                    }
                    Err(error) => error,
                },
            };
            self.messages = None;
            let since = *self.broken_since.get_or_insert_with(Instant::now);
            if !error.is_retryable() || self.pid.is_none() || since.elapsed() > patient(BROKEN_MAX) {
                return Err(error);
            }
            tracing::debug!(pid = self.pid, offset = self.offset, "a process's stream broke; attaching again");
            sleep(RETRY_PAUSE).await;
        }
    }

    /// Reads an event of the protocol; `None` for a keep-alive, for a repeated start, and for a kind that only a newer
    /// agent knows.
    fn take(&mut self, event: Event) -> Result<Option<ProcessEvent>, AgentError> {
        Ok(match event {
            Event::Start(start) => {
                self.pid.replace(start.pid).is_none().then_some(ProcessEvent::Start { pid: start.pid })
            }
            Event::Data(data) => {
                let Some(output) = data.output else { return Ok(None) };
                let (event, bytes) = match output {
                    Output::Stdout(bytes) => (ProcessEvent::Stdout as fn(Bytes) -> ProcessEvent, bytes),
                    Output::Stderr(bytes) => (ProcessEvent::Stderr as fn(Bytes) -> ProcessEvent, bytes),
                    Output::Pty(bytes) => (ProcessEvent::Pty as fn(Bytes) -> ProcessEvent, bytes),
                };
                self.offset = after(self.offset, bytes.len() as u64)?;
                Some(event(bytes))
            }
            Event::Lost(lost) => {
                self.offset = after(lost.offset, lost.bytes)?;
                Some(ProcessEvent::Lost { bytes: lost.bytes })
            }
            Event::End(end) => {
                self.ended = true;
                let end = *end;
                Some(ProcessEvent::End { exit_code: end.exit_code, exited: end.exited, status: shown(&end.status) })
            }
            Event::Keepalive(_) => None,
        })
    }
}

fn after(offset: u64, bytes: u64) -> Result<u64, AgentError> {
    offset.checked_add(bytes).ok_or(AgentError::Senseless { what: "more output than can be counted" })
}

/// How long the agent may take to tell of a process's time-out: a guest under emulation is slow.
const LATE_MAX: Duration = Duration::from_secs(2);

/// How long wrenn tries to make a broken stream again before its reader gets an error.
const BROKEN_MAX: Duration = Duration::from_secs(30);
const RETRY_PAUSE: Duration = Duration::from_millis(10);
