use std::fmt;

use crate::oci::Progress;

/// A step of a build, reported when it begins. Its `Display` is a line for a person.
///
/// ```
/// use wrenn_core::image::Step;
///
/// assert_eq!(Step::Kernel.to_string(), "fetching the kernel");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Another process builds the same image, and this build waits for it.
    Waiting,
    /// The image has the wanted settings already, so nothing is built.
    Current,
    /// Debian's packages are downloaded and installed.
    Bootstrapping {
        /// The release's code name.
        suite: String,
    },
    /// An OCI image is pulled.
    Pulling {
        /// Its reference, in full.
        reference: String,
    },
    /// What the reference leads to is known.
    Found {
        /// The digest of the image's manifest.
        digest: String,
        /// How many layers the image has.
        layers: usize,
        /// The bytes of its layers, as the registry has them.
        bytes: u64,
    },
    /// A layer of the image is here.
    Layer {
        /// The layer's digest.
        digest: String,
        /// Whether it was here before.
        kept: bool,
    },
    /// Something failed that may be different the next time, and is done again.
    Retrying {
        /// What is done again.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// How much was downloaded so far; reported every few seconds while that grows.
    Downloaded {
        /// In bytes.
        bytes: u64,
    },
    /// A line that the bootstrapping program reported.
    Detail(String),
    /// The kernel and its modules are fetched from Debian.
    Kernel,
    /// The base file system is written.
    Base,
    /// The writable drive's template is formatted.
    Drive,
    /// The agent and the modules are packed.
    Initramfs,
    /// The files are made durable, and the image gets its name.
    Publishing,
}

impl From<Progress> for Step {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Found { digest, layers, bytes } => Self::Found { digest, layers, bytes },
            Progress::Kept { layer } => Self::Layer { digest: layer, kept: true },
            Progress::Layer { layer } => Self::Layer { digest: layer, kept: false },
            Progress::Downloaded { bytes } => Self::Downloaded { bytes },
            Progress::Retrying { what, reason } => Self::Retrying { what, reason },
            Progress::Base => Self::Base,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another build of this image"),
            Self::Current => f.write_str("the image is up to date"),
            Self::Bootstrapping { suite } => {
                write!(f, "bootstrapping Debian {suite} (takes about a minute)")
            }
            Self::Pulling { reference } => write!(f, "pulling {reference}"),
            Self::Found { digest, layers, bytes } => {
                write!(f, "{digest} has {layers} layers, {} MB", bytes / 1_000_000)
            }
            Self::Layer { digest, kept: false } => write!(f, "layer {digest} is whole"),
            Self::Layer { digest, kept: true } => write!(f, "layer {digest} is here already"),
            Self::Retrying { what, reason } => write!(f, "trying {what} again: {reason}"),
            Self::Downloaded { bytes } => write!(f, "{} MB downloaded", bytes / 1_000_000),
            Self::Detail(line) => f.write_str(line),
            Self::Kernel => f.write_str("fetching the kernel"),
            Self::Base => f.write_str("writing the base file system"),
            Self::Drive => f.write_str("formatting the writable drive"),
            Self::Initramfs => f.write_str("packing the agent and the kernel modules"),
            Self::Publishing => f.write_str("publishing the image"),
        }
    }
}
