use std::fmt;

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

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting for another build of this image"),
            Self::Current => f.write_str("the image is up to date"),
            Self::Bootstrapping { suite } => {
                write!(f, "bootstrapping Debian {suite} (takes about a minute)")
            }
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
