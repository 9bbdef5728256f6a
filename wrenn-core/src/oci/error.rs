use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an image could not be had from where it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OciError {
    /// The text names no image.
    #[error(
        "`{text}` names no image: {reason}; accepted are a registry's `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`, \
         `oci:DIRECTORY[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME:TAG]`, `tar:FILE` and `dir:DIRECTORY`"
    )]
    Source { text: String, reason: String },
    /// A file of this machine cannot be worked with.
    #[error("cannot {what} {}: check that it is there, its rights, and the space of its file system", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    /// The registry could not be reached, or the connection broke.
    #[error(
        "the registry {registry} cannot be reached or broke off: check the network, its name, any proxy, and that the authority of its certificate is trusted"
    )]
    Transport { registry: String, source: Box<dyn Error + Send + Sync> },
    /// Nothing came for too long.
    #[error(
        "nothing came of {what} for {} s: the registry or the network stalls; try again, or allow more time", after.as_secs()
    )]
    Stalled { what: String, after: Duration },
    /// The registry answered with an error.
    #[error("{url} answers {code}: {message}; look the answer up in the registry's documentation, or try again later")]
    Status { url: String, code: u16, message: String },
    /// The registry does not show the image to this user.
    #[error(
        "{registry} does not give out `{repository}` to this user ({reason}): check the name, and log in \
         with `docker login {registry}` or give credentials"
    )]
    Denied { registry: String, repository: String, reason: String },
    /// There is no such image.
    #[error("there is no {what}: check the name and the tag")]
    NotFound { what: String },
    /// The credentials cannot be read.
    #[error("the credentials for {registry} cannot be had: {reason}; mend the file or the helper, or give credentials")]
    Credentials { registry: String, reason: String },
    /// The bytes are not those that were named.
    #[error(
        "{what} is {found} and not {expected}: it was damaged or exchanged on its way; try again, and distrust the source \
         if that stays"
    )]
    Digest { what: String, expected: String, found: String },
    /// What came is not what it should be.
    #[error("{what} cannot be understood: {reason}; the image has to be built or saved again")]
    Malformed { what: String, reason: String, source: Option<Box<dyn Error + Send + Sync>> },
    /// The image or a part of it is of a kind that is not known.
    #[error(
        "{what} is of the kind `{media_type}`, which is none of a container image for Linux: name an image that is"
    )]
    MediaType { what: String, media_type: String },
    /// The image is for other machines.
    #[error("the image is for {}, and a guest needs linux/amd64: name an image that is built for it", list(available))]
    Platform { available: Vec<String> },
    /// A limit is exceeded.
    #[error("{what} exceeds the limit of {limit}: raise the limit if the image can be trusted")]
    Limit { what: String, limit: u64 },
    /// An entry of a layer cannot be put into a file system.
    #[error("the entry `{path}` of {layer} cannot be taken: {reason}; the image has to be built without it")]
    Entry { layer: String, path: String, reason: EntryFault },
}

/// What is wrong with an entry of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EntryFault {
    #[error("`..` is in its name")]
    Upward,
    #[error("a part of its name is longer than 255 bytes")]
    NameLength,
    #[error("it is deeper than 1024 directories")]
    Depth,
    #[error("a zero byte is in its name")]
    Zero,
    #[error("it is no directory, and the root has to be one")]
    Root,
    #[error("it hides nothing that could have a name")]
    Whiteout,
    #[error("its target is empty or longer than 4095 bytes")]
    Target,
    #[error("it is a hard link to something that is not there")]
    MissingTarget,
    #[error("it is a hard link to a directory")]
    DirectoryTarget,
    #[error("a file that is no directory is above it")]
    NotADirectory,
    #[error("the links above it lead round in a circle")]
    Loop,
    #[error("its extended attributes are too long")]
    Attributes,
    #[error("its numbers of user, group or device are too large")]
    Number,
    #[error("there are more files than a file system can have")]
    Count,
}

impl OciError {
    /// Whether the same call may succeed later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::Stalled { .. } => true,
            Self::Status { code, .. } => matches!(code, 408 | 425 | 429 | 500..),
            _ => false,
        }
    }

    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    pub(super) fn malformed(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { what: what.into(), reason: reason.into(), source: None }
    }

    pub(super) fn entry(layer: &str, path: &[u8], reason: EntryFault) -> Self {
        Self::Entry { layer: layer.to_owned(), path: String::from_utf8_lossy(path).into_owned(), reason }
    }

    pub(super) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |source| Self::Malformed { what, reason: source.to_string(), source: Some(source.into()) }
    }
}

fn list(available: &[String]) -> impl fmt::Display + '_ {
    if available.is_empty() { "no platform that it names".to_owned() } else { available.join(", ") }
}
