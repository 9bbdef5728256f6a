//! What a caller can act on when something fails.

pub(crate) mod build;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::error::AgentError;
use crate::error::build::BuildFailure;
use crate::id::{NameError, SandboxId, TemplateName};
use crate::image::error::ImageError;
use crate::state::{Exit, SandboxState};

/// Why a call failed. There is one variant for each thing that a caller can do about it, and each text names its remedy
/// where there is one.
///
/// `Display` leaves the cause out: walk [`source`](std::error::Error::source), or print with `{:#}` through `anyhow`.
/// [`code`](Self::code) is for programs, [`subject`](Self::subject) is the thing that the error is about.
///
/// ```
/// use wrenn_core::{Error, SandboxId, Subject};
///
/// let error = Error::from("sandbox 7".parse::<SandboxId>().unwrap_err());
/// assert_eq!(error.code(), "invalid_input");
/// assert!(!error.is_retryable());
/// assert_eq!(error.subject(), None);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument cannot be used; the text says what can.
    #[error("{message}")]
    InvalidInput {
        /// The thing that the argument names, where it names one.
        subject: Option<Subject>,
        /// What is wrong, and what can be used.
        message: String,
    },
    /// There is no such sandbox, template, image, process or file.
    #[error("{message}")]
    NotFound {
        /// What is not there.
        subject: Option<Subject>,
        /// What is not there, and where to look for what is.
        message: String,
    },
    /// The name is taken.
    #[error("there is {subject} already: choose another name, or remove it first")]
    AlreadyExists {
        /// What has the name.
        subject: Subject,
    },
    /// The sandbox is not in a state in which it can do this.
    #[error("sandbox {id} cannot {operation} while it is {state}{}", Because(exit.as_ref()))]
    InvalidState {
        /// The sandbox.
        id: SandboxId,
        /// What was asked for.
        operation: &'static str,
        /// The state of the sandbox at that moment.
        state: SandboxState,
        /// Why the sandbox no longer runs; `None` where it does.
        exit: Option<Exit>,
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
    Corrupt {
        /// What is damaged, with its place.
        #[source]
        source: BoxError,
    },
    /// The virtual machine ended by itself, or somebody other than this library ended it.
    #[error("the virtual machine ended during {during} ({exit}); the last of its console:\n{console}")]
    VmEnded {
        /// What the virtual machine was needed for.
        during: &'static str,
        /// How the VMM ended.
        exit: String,
        /// The last lines that the guest and the VMM printed.
        console: String,
    },
    /// A template's machine runs, and the agent in it has not come up in time.
    #[error(
        "the guest did not come up within {after:?}: look for the cause in the last of its console, and try \
         WRENN_ACCELERATION=tcg if this host's KVM is new to you:\n{console}"
    )]
    BootTimedOut {
        /// How long the guest was given.
        after: Duration,
        /// The last lines that the guest and the VMM printed.
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
        /// What the command had written to its standard output.
        stdout: Vec<u8>,
        /// What the command had written to its standard error.
        stderr: Vec<u8>,
    },
    /// A collected command wrote more than the limit, and was killed.
    #[error(
        "the command wrote more than {limit_bytes} bytes and was killed; raise `Command::output_limit`, or stream it \
         with `spawn`"
    )]
    OutputTooLong {
        /// The limit for each of the two streams, in bytes.
        limit_bytes: usize,
        /// What the command had written to its standard output, up to the limit.
        stdout: Vec<u8>,
        /// What the command had written to its standard error, up to the limit.
        stderr: Vec<u8>,
    },
    /// The connection broke while the output of a command was collected, and came back when the guest no longer held
    /// all of that output.
    #[error(
        "{bytes} bytes of the command's output are lost: the connection to the guest broke, and it wrote more meanwhile \
         than the guest keeps"
    )]
    OutputLost {
        /// The length of the gap, in bytes.
        bytes: u64,
        /// What the command had written to its standard output before the gap.
        stdout: Vec<u8>,
        /// What the command had written to its standard error before the gap.
        stderr: Vec<u8>,
    },
    /// The guest's agent refused, or could not be reached.
    #[error("the guest's agent could not {what}")]
    Agent {
        /// What the agent was asked to do, as a verb and its object.
        what: &'static str,
        /// The agent's answer, or why there is none.
        #[source]
        source: AgentError,
    },
    /// An image could not be used or built.
    #[error("could not use the image")]
    Image(#[source] ImageError),
    /// A step of a template's build failed. What the steps before it have made is kept.
    #[error(transparent)]
    Build(Box<BuildFailure>),
    /// Something else failed, for which no remedy is known.
    #[error("could not {what}")]
    Failed {
        /// What failed.
        what: String,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// The result of every call of this library that can fail.
///
/// ```
/// async fn hello(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<String> {
///     Ok(sandbox.exec("echo hello").await?.stdout_utf8())
/// }
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A cause whose type is not part of the interface.
///
/// ```
/// use wrenn_core::{BoxError, Error};
///
/// let source: BoxError = "the cable is out".into();
/// let error = Error::Failed { what: "say hello".to_owned(), source };
/// assert_eq!(error.to_string(), "could not say hello");
/// ```
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Error {
    /// A name for programs that never changes: `not_found`, `vm_ended`, and so on.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidInput { .. } => "invalid_input",
            Self::NotFound { .. } => "not_found",
            Self::AlreadyExists { .. } => "already_exists",
            Self::InvalidState { .. } => "invalid_state",
            Self::Host { .. } => "host_lacks",
            Self::NoSpace { .. } => "no_space",
            Self::Corrupt { .. } => "corrupt",
            Self::VmEnded { .. } => "vm_ended",
            Self::BootTimedOut { .. } => "boot_timed_out",
            Self::CommandTimedOut { .. } => "command_timed_out",
            Self::OutputTooLong { .. } => "output_too_long",
            Self::OutputLost { .. } => "output_lost",
            Self::Agent { source, .. } => source.code(),
            Self::Image(_) => "image",
            Self::Build(_) => "build_failed",
            Self::Failed { .. } => "failed",
        }
    }

    /// The thing that the error is about, where that has a name.
    #[must_use]
    pub fn subject(&self) -> Option<Subject> {
        match self {
            Self::InvalidInput { subject, .. } | Self::NotFound { subject, .. } => subject.clone(),
            Self::AlreadyExists { subject } => Some(subject.clone()),
            Self::InvalidState { id, .. } => Some(Subject::Sandbox(id.clone())),
            Self::NoSpace { path, .. } => Some(Subject::Path(path.clone())),
            Self::Host { .. }
            | Self::Corrupt { .. }
            | Self::VmEnded { .. }
            | Self::BootTimedOut { .. }
            | Self::CommandTimedOut { .. }
            | Self::OutputTooLong { .. }
            | Self::OutputLost { .. }
            | Self::Agent { .. }
            | Self::Image(_)
            | Self::Build(_)
            | Self::Failed { .. } => None,
        }
    }

    /// What to do about an [`Error::Host`]; `None` for every other error, whose text says it where there is something
    /// to do.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Host { remedy, .. } => Some(remedy),
            _ => None,
        }
    }

    /// Whether the same call may succeed later with nothing changed by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::VmEnded { .. } => true,
            Self::InvalidState { state, .. } => *state == SandboxState::Saving,
            Self::Agent { source, .. } => source.is_retryable(),
            Self::Image(source) => source.is_retryable(),
            _ => false,
        }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::InvalidInput { subject: None, message: text.into() }
    }

    pub(crate) fn not_found(subject: Subject, message: impl Into<String>) -> Self {
        Self::NotFound { subject: Some(subject), message: message.into() }
    }

    pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(BoxError) -> Self {
        move |source| Self::Failed { what: what.into(), source }
    }

    /// The error of a file operation on `path`, as a function for `map_err`.
    pub(crate) fn io(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), source: source.into() }
            }
            io::ErrorKind::PermissionDenied => Self::Host {
                problem: format!("this user may not {what} {}", path.display()),
                remedy: "run as a user who may, or name another directory with WRENN_DATA_DIR".to_owned(),
                source: Some(source.into()),
            },
            io::ErrorKind::ReadOnlyFilesystem => Self::Host {
                problem: format!("wrenn cannot {what} {}, whose file system is read-only", path.display()),
                remedy: "mount it writable, or name another directory with WRENN_DATA_DIR".to_owned(),
                source: Some(source.into()),
            },
            _ => Self::Failed { what: format!("{what} {}", path.display()), source: source.into() },
        }
    }

    /// The error of a call about files of the guest, as a function for `map_err`.
    pub(crate) fn file(what: &'static str) -> impl FnOnce(AgentError) -> Self {
        move |source| match source {
            AgentError::NotFound { what } => Self::NotFound { subject: None, message: what },
            AgentError::InvalidArgument { message } => Self::invalid(message),
            source => Self::Agent { what, source },
        }
    }

    /// The error of a call about a command of the guest.
    pub(crate) fn command(source: AgentError) -> Self {
        match source {
            AgentError::NotFound { what } => Self::NotFound { subject: None, message: what },
            AgentError::InvalidArgument { message } | AgentError::OutOfRange { message } => Self::invalid(message),
            source => Self::Agent { what: "run a command", source },
        }
    }

    pub(crate) fn agent(what: &'static str) -> impl FnOnce(AgentError) -> Self {
        move |source| Self::Agent { what, source }
    }
}

/// The thing that an [`Error`] is about.
///
/// ```
/// use wrenn_core::{Error, Subject};
///
/// let error = Error::AlreadyExists { subject: Subject::Template("warm-python".parse()?) };
/// assert_eq!(error.subject(), Some(Subject::Template("warm-python".parse()?)));
/// assert!(error.to_string().starts_with("there is a template named warm-python already"));
/// # Ok::<_, wrenn_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// A sandbox, running, paused or gone.
    Sandbox(SandboxId),
    /// A template.
    Template(TemplateName),
    /// An image, by its name.
    Image(String),
    /// A process of the guest, by its number or its tag.
    Process(String),
    /// A file or a directory, of the guest or of the host.
    Path(PathBuf),
    /// A port of the guest.
    Port(u16),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id) => write!(f, "a sandbox {id}"),
            Self::Template(name) => write!(f, "a template named {name}"),
            Self::Image(name) => write!(f, "an image named {name}"),
            Self::Process(name) => write!(f, "a process {name}"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Port(number) => write!(f, "port {number}"),
        }
    }
}

/// An error with all of its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Writes why a sandbox no longer runs, as the end of an error's text; writes nothing where there is no reason.
struct Because<'a>(Option<&'a Exit>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |exit| write!(f, ": {exit}"))
    }
}

impl From<wrenn_snapshot::Error> for Error {
    fn from(error: wrenn_snapshot::Error) -> Self {
        match error {
            wrenn_snapshot::Error::NoSpace { path, source } => Self::NoSpace { path, source: source.into() },
            wrenn_snapshot::Error::Corrupt { .. } => Self::Corrupt { source: error.into() },
            error => Self::Failed { what: "use the snapshot store".to_owned(), source: error.into() },
        }
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::NotFound { ref name, .. } => {
                Self::NotFound { subject: Some(Subject::Image(name.clone())), message: error.to_string() }
            }
            ImageError::Name(_) | ImageError::Setting { .. } => Self::invalid(error.to_string()),
            ImageError::Oci(ref pull) if pull.is_malformed_reference() => Self::invalid(error.to_string()),
            ImageError::Io { action, path, source } if source.kind() == io::ErrorKind::PermissionDenied => Self::Host {
                problem: format!("this user may not {action} {}", path.display()),
                remedy: "run as a user who may, or name another directory with WRENN_DATA_DIR".to_owned(),
                source: Some(source.into()),
            },
            ImageError::NoSpace { ref path, .. } => Self::NoSpace { path: path.clone(), source: error.into() },
            error => Self::Image(error),
        }
    }
}

impl From<wrenn_net::PolicyError> for Error {
    fn from(error: wrenn_net::PolicyError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<wrenn_net::NetError> for Error {
    fn from(error: wrenn_net::NetError) -> Self {
        match error {
            wrenn_net::NetError::Permission { what, source } => Self::Host {
                problem: format!("there is no permission to {what}"),
                remedy: "run as root, or with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW; or as a user who may make user \
                         namespaces"
                    .to_owned(),
                source: Some(source.into()),
            },
            wrenn_net::NetError::UserNamespace(cause) => Self::Host {
                problem: "this user may not make user namespaces".to_owned(),
                remedy: "run as root, or raise user.max_user_namespaces; on Debian set kernel.unprivileged_userns_clone=1, on \
                         Ubuntu 24.04 kernel.apparmor_restrict_unprivileged_userns=0; in a container allow `clone` of them"
                    .to_owned(),
                source: Some(cause.into()),
            },
            wrenn_net::NetError::NoTunDevice(cause) => Self::Host {
                problem: "this host has no tap devices: there is no /dev/net/tun".to_owned(),
                remedy: "load the driver with `modprobe tun`; start a container with `--device /dev/net/tun`"
                    .to_owned(),
                source: Some(cause.into()),
            },
            wrenn_net::NetError::TunForbidden(cause) => Self::Host {
                problem: "/dev/net/tun may not be opened".to_owned(),
                remedy: "run as root, or let this user open it (`chmod 0666 /dev/net/tun`, as most distributions have it); start a \
                         container with `--device /dev/net/tun`"
                    .to_owned(),
                source: Some(cause.into()),
            },
            wrenn_net::NetError::NoTransparentProxy(cause) => Self::Host {
                problem: "this kernel cannot lead a guest's connections to a program".to_owned(),
                remedy: "load `modprobe nft_tproxy` on the host, or use a kernel with NFT_TPROXY and NF_TPROXY_IPV4"
                    .to_owned(),
                source: Some(cause.into()),
            },
            error => Self::Failed { what: "make the network slot".to_owned(), source: error.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_denied_is_named_with_what_was_tried_and_a_remedy_that_fits() {
        let denied =
            |kind: io::ErrorKind, what| Error::io(what, Path::new("/var/lib/wrenn/x"))(kind.into()).to_string();
        let read = denied(io::ErrorKind::PermissionDenied, "read");
        assert!(read.contains("this user may not read /var/lib/wrenn/x"), "{read}");
        assert!(read.contains("run as a user who may"), "{read}");
        let written = denied(io::ErrorKind::ReadOnlyFilesystem, "write");
        assert!(written.contains("wrenn cannot write /var/lib/wrenn/x, whose file system is read-only"), "{written}");
        assert!(written.contains("mount it writable"), "{written}");
    }
}
