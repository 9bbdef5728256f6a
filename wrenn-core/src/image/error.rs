use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::oci::OciError;

/// Why an image could not be built or opened.
///
/// ```
/// use wrenn_core::image::{Image, ImageError};
///
/// let error = Image::open("/nowhere".as_ref(), "base").unwrap_err();
/// assert!(matches!(error, ImageError::NotFound { .. }));
/// assert!(error.to_string().starts_with("no image `base` in /nowhere/images"));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The text is not an image name.
    #[error("`{0}` is not an image name: 1 to 63 of `a-z`, `0-9`, `.`, `_` and `-`, a letter or digit first")]
    Name(String),
    /// A setting of the builder cannot be honoured.
    #[error("the image setting `{setting}` cannot be `{value}`: {rule}")]
    Setting {
        /// The method of the builder that was given the value.
        setting: &'static str,
        /// The value.
        value: String,
        /// Which values the method takes.
        rule: &'static str,
    },
    /// There is no such image in this data directory.
    #[error(
        "no image `{name}` in {}: make it with `Host::ensure_image`, or from a shell with `wrenn-server setup`", images.display()
    )]
    NotFound {
        /// The image's name.
        name: String,
        /// The directory that images are kept in.
        images: PathBuf,
    },
    /// The manifest does not parse.
    #[error("the image manifest {} is broken", path.display())]
    BrokenManifest {
        /// The manifest's path.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// The manifest was written by another version of wrenn.
    #[error("the image manifest {} has format {found}, this wrenn reads {known}", path.display())]
    UnknownFormat {
        /// The manifest's path.
        path: PathBuf,
        /// The format that the manifest names.
        found: u32,
        /// The format that this version reads.
        known: u32,
    },
    /// A file of the image is absent, or is not what the manifest says.
    #[error("the image file {} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
    /// The agent cannot be a guest's first process.
    #[error("{} cannot be the guest's agent: {reason}", path.display())]
    Agent {
        /// The binary.
        path: PathBuf,
        /// What is wrong with the binary.
        reason: String,
    },
    /// This build of the library has no agent in it, and the settings name none.
    #[error(
        "this program was built with WRENN_AGENT=none, so it has no agent for guests: build it without that variable, \
         or name an agent with `ImageBuilder::agent`"
    )]
    NoAgent,
    /// A host program is missing.
    #[error("{program} is not installed: run `apt-get install {package}`")]
    MissingTool {
        /// The program's name, or the file's path.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A base has files of several users, which somebody who is not root may only make with ids that root lent.
    #[error(
        "building an image takes root, or for the user `{user}` a range of subordinate ids: `usermod --add-subuids \
         100000-165535 --add-subgids 100000-165535 {user}` (a range that nobody else has in /etc/subuid)"
    )]
    NoSubordinateIds {
        /// The user who has none.
        user: String,
    },
    /// The file system has less space than a build needs.
    #[error(
        "not enough space in {}: {available_bytes} bytes are free, {needed_bytes} are needed", path.display()
    )]
    NoSpace {
        /// Where the image is built.
        path: PathBuf,
        /// How many bytes a build needs at its peak.
        needed_bytes: u64,
        /// How many bytes are free.
        available_bytes: u64,
    },
    /// A host program failed.
    #[error("{program} failed ({status}): {stderr}")]
    Tool {
        /// The program.
        program: &'static str,
        /// How the program ended.
        status: ExitStatus,
        /// The last lines that the program wrote to its standard error.
        stderr: String,
    },
    /// The kernel package lacks a module.
    #[error("the kernel has no module `{name}`, needed by {needed_by}")]
    MissingModule {
        /// The module.
        name: String,
        /// The module that depends on it, or `the guest`.
        needed_by: String,
    },
    /// Modules depend on each other in a circle.
    #[error("the kernel module `{0}` depends on itself")]
    ModuleCycle(String),
    /// The kernel package is not laid out as expected.
    #[error("cannot use the kernel package: {0}")]
    Kernel(String),
    /// An OCI image could not be had: its registry, its content, or what was asked for. The text says what can be done.
    #[error(transparent)]
    Oci(#[from] PullError),
    /// A file system operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why an OCI image could not be had. Its text says what can be done about it.
///
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// use wrenn_core::image::{Image, ImageError};
///
/// let dir = std::env::temp_dir();
/// let error = Image::builder("bad").oci("docker.io/UPPER").build(&dir, |_| {}).await.unwrap_err();
/// assert!(matches!(error, ImageError::Oci(error) if error.to_string().contains("names no image")));
/// # })
/// ```
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct PullError(#[from] OciError);

impl PullError {
    /// Whether the registry says that there is no such image, or the place on this machine has none.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.0, OciError::NotFound { .. })
    }

    /// Whether the registry does not give the image out to this user. Some registries say so of what there is not, too.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.0, OciError::Denied { .. })
    }

    /// Whether the text that was to name an image names none.
    #[must_use]
    pub fn is_malformed_reference(&self) -> bool {
        matches!(self.0, OciError::Source { .. })
    }

    /// Whether the same pull may succeed later with nothing changed on this host.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.is_retryable()
    }
}

impl From<OciError> for ImageError {
    fn from(error: OciError) -> Self {
        Self::Oci(error.into())
    }
}

impl ImageError {
    pub(super) fn setting(setting: &'static str, value: &str, rule: &'static str) -> Self {
        Self::Setting { setting, value: value.to_owned(), rule }
    }

    /// Wraps an [`io::Error`]: `.map_err(ImageError::io("write", path))`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the same call may succeed later with nothing changed on this host, since a download failed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Tool { program, .. } => matches!(*program, "mmdebstrap" | "apt-get"),
            Self::Oci(error) => error.is_retryable(),
            _ => false,
        }
    }
}
