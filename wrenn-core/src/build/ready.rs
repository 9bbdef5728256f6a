//! When a template's start command has come far enough for its snapshot.

use std::time::Duration;

use serde::Serialize;

/// What a build waits for after it has run the start command. The snapshot is taken then: the server of each sandbox of the
/// template is as warm as it was at that moment.
///
/// ```
/// use std::time::Duration;
///
/// use wrenn_core::Ready;
///
/// let answers = Ready::http(8000, "/health").limit(Duration::from_secs(20));
/// assert_ne!(answers, Ready::port(8000));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    pub(super) check: Check,
    pub(super) limit: Duration,
}

/// The limit is no part of it: it changes nothing of a snapshot that is taken within it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) enum Check {
    Port(u16),
    Command(String),
    Http { port: u16, path: String },
    After(Duration),
}

impl Ready {
    /// Ready when the TCP port takes connections.
    #[must_use]
    pub fn port(port: u16) -> Self {
        Self::new(Check::Port(port))
    }

    /// Ready when a line of shell ends with 0. It is run again and again, as the user and in the directory of the start
    /// command.
    #[must_use]
    pub fn command(line: impl Into<String>) -> Self {
        Self::new(Check::Command(line.into()))
    }

    /// Ready when a `GET` of `path` on the port is answered with a status from 200 to 299.
    #[must_use]
    pub fn http(port: u16, path: impl Into<String>) -> Self {
        Self::new(Check::Http { port, path: path.into() })
    }

    /// Ready after this time, in which the start command must not end.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        let ready = Self::new(Check::After(time));
        let limit = ready.limit + time;
        ready.limit(limit)
    }

    /// How long the build waits before it fails. Default: one minute, and for [`after`](Self::after) a minute more than its
    /// time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn new(check: Check) -> Self {
        Self { check, limit: LIMIT }
    }
}

const LIMIT: Duration = Duration::from_secs(60);
