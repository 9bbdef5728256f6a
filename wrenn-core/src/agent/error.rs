use std::{error::Error, io, time::Duration};

use connectrpc::{ConnectError, ErrorCode};
use http_body_util::LengthLimitError;

use crate::agent::connection::SendError;
use crate::agent::words::shown;

/// Why a request to the guest's agent failed.
///
/// [`Error::Agent`](crate::Error::Agent) has it inside.
///
/// ```
/// use std::time::Duration;
/// use wrenn_core::{AgentError, Error};
///
/// let error = Error::Agent { what: "answer", source: AgentError::Unresponsive { after: Duration::from_secs(30) } };
/// assert_eq!((error.code(), error.is_retryable()), ("agent_unresponsive", false));
/// assert_eq!(error.to_string(), "the guest's agent could not answer");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// No connection to the agent could be made within the time allowed.
    #[error("the guest's agent cannot be reached; `Sandbox::kill` and `Sandbox::console` work all the same")]
    NotReachable {
        /// Why the last attempt failed.
        source: io::Error,
    },
    /// The access token is not the guest's.
    #[error("the guest's agent refused the access token: {message}")]
    Unauthorized {
        /// The agent's words.
        message: String,
    },
    /// The file, the process or the command does not exist.
    #[error("{what}")]
    NotFound {
        /// What is missing, in the agent's words.
        what: String,
    },
    /// The agent cannot do what the request says: a working directory is missing, or the guest has no such user.
    #[error("{message}")]
    InvalidArgument {
        /// What is wrong, in the agent's words.
        message: String,
    },
    /// The request asks for a part of a process's output that the process has not written yet.
    #[error("{message}")]
    OutOfRange {
        /// How much the process has written, in the agent's words.
        message: String,
    },
    /// The time-out of the request was over. A process that was started with that time-out was killed in the guest.
    #[error("the guest's agent ran out of time: {message}")]
    TimedOut {
        /// What took too long.
        message: String,
    },
    /// The agent did not answer for so long that it may never answer: the guest's network is down, or the guest is too
    /// busy. Whether the call had its effect is not known. Calls that do not need the agent still work.
    #[error(
        "the guest's agent has not answered for {after:?}: the guest's network may be down, or its processors or its memory \
         taken; `Sandbox::kill` and `Sandbox::console` work all the same"
    )]
    Unresponsive {
        /// How long the call waited.
        after: Duration,
    },
    /// The agent could not do it at that moment: the guest is frozen, or was restored meanwhile, a file system of the guest
    /// does not answer, or others are calling. A process that was to be started was not.
    #[error("the guest's agent cannot do it now: {message}")]
    Unavailable {
        /// What holds it up, in the agent's words.
        message: String,
    },
    /// The answer is longer than can be taken at once.
    #[error("it is longer than {} MiB, which is the most that is read at once: use `Files::open`", limit_bytes >> 20)]
    TooLong {
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// The agent is of an earlier wrenn, and cannot do this yet.
    #[error(
        "the guest has the agent of an earlier wrenn, which cannot {what}: build the template, or make the snapshot, that \
         the guest comes from anew"
    )]
    Outdated {
        /// What it cannot do, as a verb and its object.
        what: &'static str,
    },
    /// The agent's answer breaks the protocol.
    #[error("the guest's agent answered {what}")]
    Senseless {
        /// What the agent answered.
        what: &'static str,
    },
    /// The agent refused for another reason.
    #[error("the guest's agent refused ({code}): {message}")]
    Refused {
        /// The protocol's name for the reason, or the HTTP status.
        code: String,
        /// The agent's words.
        message: String,
    },
    /// The connection broke, or was closed, before the answer was complete.
    #[error("the connection to the guest's agent was lost")]
    ConnectionLost {
        /// What broke the connection; `None` where the agent closed it properly, but too early.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

impl AgentError {
    /// Whether the same call may succeed later, or on a new connection. It may have had its effect already.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.is_unanswered() || matches!(self, Self::Unavailable { .. })
    }

    /// Whether no answer of the agent's came.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self, Self::NotReachable { .. } | Self::ConnectionLost { .. })
    }

    /// A name for programs that never changes.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotReachable { .. } => "agent_not_reachable",
            Self::Unauthorized { .. } => "agent_unauthorized",
            Self::NotFound { .. } => "not_found",
            Self::InvalidArgument { .. } | Self::OutOfRange { .. } => "invalid_input",
            Self::TimedOut { .. } => "agent_timed_out",
            Self::Refused { .. } => "agent_refused",
            Self::ConnectionLost { .. } => "agent_connection_lost",
            Self::Unresponsive { .. } => "agent_unresponsive",
            Self::Unavailable { .. } => "agent_unavailable",
            Self::TooLong { .. } => "too_long",
            Self::Outdated { .. } => "agent_outdated",
            Self::Senseless { .. } => "agent_senseless",
        }
    }

    /// From what broke the body of an answer that may have so many bytes.
    pub(super) fn cut(source: Box<dyn Error + Send + Sync>, limit_bytes: usize) -> Self {
        if source.is::<LengthLimitError>() { Self::TooLong { limit_bytes } } else { Self::lost(source) }
    }

    pub(crate) fn lost(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::ConnectionLost { source: Some(source.into()) }
    }

    /// From an answer of the plain HTTP side, whose body is `{code, message}`.
    pub(super) fn from_status(status: http::StatusCode, body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Refusal {
            message: String,
        }
        let message = match serde_json::from_slice(body) {
            Ok(Refusal { message }) => shown(&message),
            Err(_) => shown(&String::from_utf8_lossy(&body[..body.len().min(256)])),
        };
        match status {
            http::StatusCode::UNAUTHORIZED => Self::Unauthorized { message },
            http::StatusCode::NOT_FOUND => Self::NotFound { what: message },
            http::StatusCode::BAD_REQUEST => Self::InvalidArgument { message },
            http::StatusCode::REQUEST_TIMEOUT
            | http::StatusCode::TOO_MANY_REQUESTS
            | http::StatusCode::SERVICE_UNAVAILABLE => Self::Unavailable { message },
            status => Self::Refused { code: status.as_u16().to_string(), message },
        }
    }
}

impl From<SendError> for AgentError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotReachable(source) => Self::NotReachable { source },
            SendError::Broken(source) => Self::lost(source),
        }
    }
}

impl From<ConnectError> for AgentError {
    fn from(mut error: ConnectError) -> Self {
        // The message comes mostly from the guest, so it is cleaned before it is shown.
        error.message = error.message.map(|message| shown(&message));
        let message = error.message.clone().unwrap_or_default();
        match error.code {
            ErrorCode::Unauthenticated => Self::Unauthorized { message },
            ErrorCode::NotFound => Self::NotFound { what: message },
            ErrorCode::InvalidArgument => Self::InvalidArgument { message },
            ErrorCode::OutOfRange => Self::OutOfRange { message },
            ErrorCode::DeadlineExceeded => Self::TimedOut { message },
            // Without a cause it is the agent's own word.
            ErrorCode::Unavailable if error.source_arc().is_none() => Self::Unavailable { message },
            // What the protocol's own code says when a stream or a transport breaks; the agent itself says none of these.
            ErrorCode::Unavailable | ErrorCode::Internal | ErrorCode::Unknown | ErrorCode::Canceled => {
                let source = error.source_arc();
                match source.as_deref().and_then(|source| source.downcast_ref::<SendError>()) {
                    Some(SendError::NotReachable(_)) => Self::NotReachable { source: io::Error::other(error) },
                    _ => Self::lost(error),
                }
            }
            code => Self::Refused { code: code.as_str().to_owned(), message },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_cannot_do_for_now_is_told_and_may_be_tried_again() {
        let refused = AgentError::from(ConnectError::unavailable("the guest is frozen"));
        assert!(refused.is_retryable() && refused.to_string().contains("the guest is frozen"), "{refused}");
        assert_eq!(refused.code(), "agent_unavailable");
        for status in [408, 429, 503] {
            let status = http::StatusCode::from_u16(status).unwrap();
            let refused = AgentError::from_status(status, br#"{"code": 0, "message": "call again"}"#);
            assert!(refused.is_retryable() && refused.to_string().contains("call again"), "{refused}");
        }
        let refused = AgentError::from_status(http::StatusCode::CONFLICT, b"no");
        assert!(!refused.is_retryable(), "{refused}");
    }

    #[test]
    fn a_broken_connection_is_no_answer_of_the_agents() {
        let broken = ConnectError::unavailable("broken").with_source(io::Error::other("a transport's"));
        assert_eq!(AgentError::from(broken).code(), "agent_connection_lost");
    }
}
