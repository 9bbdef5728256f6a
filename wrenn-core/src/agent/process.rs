use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use connectrpc::client::ServerStream;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use wrenn_envd::proto::process::{
    self as wire, StartResponse,
    process_event::{Event, data_event::Output},
};

use super::AgentError;

/// A process to start in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProcessSpec {
    /// A path, or a name that is looked up in the guest's `PATH`.
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    /// Added to the sandbox's environment.
    pub(crate) envs: BTreeMap<String, String>,
    /// Relative to the user's home; `None` for the agent's default.
    pub(crate) cwd: Option<String>,
    /// `None` for the agent's default user.
    pub(crate) user: Option<String>,
    /// Whether the process gets a pipe to read from; otherwise `/dev/null`.
    pub(crate) stdin: bool,
    /// When the process and its group are killed, counted in the guest. To the millisecond.
    pub(crate) timeout: Option<Duration>,
    /// Another name for the process, beside its pid.
    pub(crate) tag: Option<String>,
}

/// A signal that the protocol can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Term,
    Kill,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProcessEvent {
    Start {
        pid: u32,
    },
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last one.
    End {
        /// -1 where a signal ended it.
        exit_code: i32,
        /// Whether it exited by itself.
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
}

/// The events of one process. Dropping it leaves the process running.
#[derive(Debug)]
pub(crate) struct ProcessStream {
    messages: ServerStream<Incoming, wire::__buffa::view::StartResponseView<'static>>,
    /// When an agent that should have killed the process is no longer believed.
    deadline: Option<Instant>,
    ended: bool,
}

impl ProcessStream {
    pub(super) fn new(
        messages: ServerStream<Incoming, wire::__buffa::view::StartResponseView<'static>>,
        timeout: Option<Duration>,
    ) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout)?.checked_add(LATE_MAX));
        Self { messages, deadline, ended: false }
    }

    /// The next event; `None` after the end. What is not read makes the process wait.
    ///
    /// # Errors
    ///
    /// [`AgentError::TimedOut`] when the process was killed because its time was up, and [`AgentError::ConnectionLost`]
    /// when it may run on unseen.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<ProcessEvent>, AgentError> {
        while !self.ended {
            let message = match self.deadline {
                Some(deadline) => {
                    timeout_at(deadline, self.messages.message::<StartResponse>()).await.map_err(|_| {
                        AgentError::TimedOut { message: "the agent did not report the process's end".to_owned() }
                    })?
                }
                None => self.messages.message::<StartResponse>().await,
            };
            let Some(message) = message? else { return Err(AgentError::ConnectionLost { source: None }) };
            let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
            if let Some(event) = event.and_then(read) {
                self.ended = matches!(event, ProcessEvent::End { .. });
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}

/// From the wire; `None` for signs of life, and for what a newer agent may say.
fn read(event: Event) -> Option<ProcessEvent> {
    match event {
        Event::Start(start) => Some(ProcessEvent::Start { pid: start.pid }),
        Event::Data(data) => match data.output? {
            Output::Stdout(bytes) => Some(ProcessEvent::Stdout(bytes.into())),
            Output::Stderr(bytes) => Some(ProcessEvent::Stderr(bytes.into())),
            Output::Pty(_) => None,
        },
        Event::End(end) => {
            let end = *end;
            Some(ProcessEvent::End { exit_code: end.exit_code, exited: end.exited, status: end.status })
        }
        // Nobody asks for offsets yet, without which nothing is reported lost.
        Event::Keepalive(_) | Event::Lost(_) => None,
    }
}

/// How long after a process's time-out the agent's word of it may take: a guest under emulation is slow.
const LATE_MAX: Duration = Duration::from_secs(10);
