use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::error::AgentError;
use crate::id::{NameError, SandboxId};
use crate::image::error::ImageError;
use crate::state::SandboxState;

/// What a caller can act on. Each text names its remedy where there is one.
///
/// `Display` leaves the cause out: walk [`source`](std::error::Error::source), or print with `{:#}` through `anyhow`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument cannot be used; the text says what can.
    #[error("{0}")]
    InvalidInput(String),
    /// There is no such sandbox, template, file or command.
    #[error("{0}")]
    NotFound(String),
    /// The sandbox is not in a state in which it can do this.
    #[error("sandbox {id} cannot {operation} while it is {state}")]
    InvalidState {
        /// Whose state.
        id: SandboxId,
        /// What was asked for.
        operation: &'static str,
        /// What it is.
        state: SandboxState,
    },
    /// This machine lacks something that wrenn needs.
    #[error("{problem}: {remedy}")]
    Host {
        /// What is missing.
        problem: String,
        /// What to do about it.
        remedy: String,
        /// The system's answer, where there was one.
        #[source]
        source: Option<BoxError>,
    },
    /// The file system is full. Nothing that was kept before is lost.
    #[error("no space left to write {}: free some, or put WRENN_DATA_DIR on a larger file system", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: BoxError,
    },
    /// Stored data is not what was stored. Nothing of it was loaded.
    #[error("stored data is damaged: restore the data directory from a copy, or delete what it names")]
    Corrupt(#[source] wrenn_snapshot::Error),
    /// The virtual machine has ended.
    #[error("the virtual machine ended during {during} ({exit}); the last of its console:\n{console}")]
    VmEnded {
        /// What it was needed for.
        during: &'static str,
        /// How the VMM ended.
        exit: String,
        /// The last lines that it printed.
        console: String,
    },
    /// A template's machine runs, and its agent has not come up.
    #[error(
        "the guest did not come up within {after:?}: look for the cause in the last of its console, and try \
         WRENN_ACCELERATION=tcg if this host's KVM is new to you:\n{console}"
    )]
    BootTimedOut {
        /// How long it was given.
        after: Duration,
        /// The last lines that it printed.
        console: String,
        /// What the last attempt to reach the agent met.
        #[source]
        source: AgentError,
    },
    /// The command was still running at its time-out, and was killed in the guest with all of its process group.
    #[error("the command ran past its time-out of {after:?} and was killed; give it more with `Command::timeout`")]
    CommandTimedOut {
        /// The time-out.
        after: Duration,
        /// What it had written to its standard output.
        stdout: Vec<u8>,
        /// What it had written to its standard error.
        stderr: Vec<u8>,
    },
    /// A collected command wrote more than the limit, and was killed.
    #[error(
        "the command wrote more than {limit_bytes} bytes and was killed; raise `Command::output_limit`, or stream it \
         with `spawn`"
    )]
    OutputTooLong {
        /// The limit for each of the two streams.
        limit_bytes: usize,
    },
    /// The connection broke while a command was collected, and came back too late for what it had written meanwhile.
    #[error(
        "{bytes} bytes of the command's output are lost: the connection to the guest broke, and it wrote more meanwhile \
         than the guest keeps"
    )]
    OutputLost {
        /// The length of the gap.
        bytes: u64,
    },
    /// The guest's agent refused, or could not be reached.
    #[error("the guest's agent could not {what}")]
    Agent {
        /// What it was asked for.
        what: &'static str,
        /// Its answer.
        #[source]
        source: AgentError,
    },
    /// Something that has no remedy of its own failed.
    #[error("could not {what}")]
    Failed {
        /// What failed.
        what: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A cause whose type is not part of the interface.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// Whether the same call may succeed later with nothing changed by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::VmEnded { .. }
                | Self::Agent { source: AgentError::NotReachable { .. } | AgentError::ConnectionLost { .. }, .. }
        )
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::InvalidInput(text.into())
    }

    pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(BoxError) -> Self {
        move |source| Self::Failed { what: what.into(), source }
    }

    /// For a file operation on `path`.
    pub(crate) fn io(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), source: source.into() }
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Host {
                problem: format!("{} cannot be written", path.display()),
                remedy: "run as a user who may, or name another directory with WRENN_DATA_DIR".to_owned(),
                source: Some(source.into()),
            },
            _ => Self::Failed { what: format!("{what} {}", path.display()), source: source.into() },
        }
    }

    /// For a call on files of the guest.
    pub(crate) fn file(what: &'static str) -> impl FnOnce(AgentError) -> Self {
        move |source| match source {
            AgentError::NotFound { what } => Self::NotFound(what),
            AgentError::InvalidArgument { message } => Self::InvalidInput(message),
            source => Self::Agent { what, source },
        }
    }

    /// For a command of the guest.
    pub(crate) fn command(source: AgentError) -> Self {
        match source {
            AgentError::NotFound { what } => Self::NotFound(what),
            AgentError::InvalidArgument { message } | AgentError::OutOfRange { message } => Self::InvalidInput(message),
            source => Self::Agent { what: "run a command", source },
        }
    }

    pub(crate) fn agent(what: &'static str) -> impl FnOnce(AgentError) -> Self {
        move |source| Self::Agent { what, source }
    }
}

impl From<wrenn_snapshot::Error> for Error {
    fn from(error: wrenn_snapshot::Error) -> Self {
        match error {
            wrenn_snapshot::Error::NoSpace { path, source } => Self::NoSpace { path, source: source.into() },
            wrenn_snapshot::Error::Corrupt { .. } => Self::Corrupt(error),
            error => Self::Failed { what: "use the snapshot store".to_owned(), source: error.into() },
        }
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::InvalidInput(error.to_string())
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        Self::Failed { what: "use the image".to_owned(), source: error.into() }
    }
}

impl From<wrenn_net::NetError> for Error {
    fn from(error: wrenn_net::NetError) -> Self {
        match error {
            wrenn_net::NetError::Permission { .. } => Self::Host {
                problem: "a network namespace cannot be made".to_owned(),
                remedy: "run as root, or with CAP_SYS_ADMIN and CAP_NET_ADMIN".to_owned(),
                source: Some(error.into()),
            },
            wrenn_net::NetError::NoTunDevice(_) => Self::Host {
                problem: "this host has no tap devices".to_owned(),
                remedy: "load the driver with `modprobe tun`".to_owned(),
                source: Some(error.into()),
            },
            error => Self::Failed { what: "make the network slot".to_owned(), source: error.into() },
        }
    }
}
