//! How an image is pulled.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::oci::certificates::default_directories;
use crate::oci::limits::Limits;

/// How an image is pulled.
#[derive(Debug, Clone)]
pub(crate) struct PullOptions {
    /// What the image may come to.
    pub(crate) limits: Limits,
    /// Whom a registry is asked as. Default: as whom the file of Docker's client says.
    pub(crate) credentials: Option<Credentials>,
    /// That file. Default: `config.json` in `DOCKER_CONFIG`, or in `.docker` of the home directory.
    pub(crate) docker_config: Option<PathBuf>,
    /// Registries and who is asked first instead of them, in order.
    pub(crate) mirrors: Vec<(String, Vec<String>)>,
    /// Registries that are asked without TLS. Those on this machine are anyway, unless there is an authority for them.
    pub(crate) plain_http: Vec<String>,
    /// Authorities in PEM that are trusted beside the host's own.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// Directories with those of single registries: see [`certificates`](super::certificates).
    pub(crate) certificates: Vec<PathBuf>,
    /// An attempt ends where nothing came for so long. Default 60 s.
    pub(crate) stall: Duration,
    /// How often in a row an attempt may fail without having brought anything, beside the first. Default 5.
    pub(crate) retries: u32,
    /// How many layers are worked on at once. Default: one for each processor, 2 to 8.
    pub(crate) parallel: usize,
}

impl Default for PullOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            limits: Limits::default(),
            credentials: None,
            docker_config: None,
            mirrors: Vec::new(),
            plain_http: Vec::new(),
            authorities: Vec::new(),
            certificates: default_directories(),
            stall: Duration::from_secs(60),
            retries: 5,
            parallel: processors.clamp(2, 8),
        }
    }
}

/// Whom a registry is asked as.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// A bearer token of the registry.
    Token(String),
    /// What the registry's token server makes a bearer token of.
    Identity(String),
}

impl fmt::Debug for Credentials {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish_non_exhaustive(),
            Self::Token(_) => f.write_str("Token"),
            Self::Identity(_) => f.write_str("Identity"),
        }
    }
}

/// What a pull is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Progress {
    /// The image is known: the digest of its manifest, and the compressed bytes of its layers.
    Found { digest: String, layers: usize, bytes: u64 },
    /// Another pull had the layer made, or makes it.
    Kept { layer: String },
    /// So much of all layers has come, of what was not kept.
    Downloaded { bytes: u64 },
    /// An attempt failed, and there will be another.
    Retrying { what: String, reason: String },
    /// The layer is whole.
    Layer { layer: String },
    /// The base is put together.
    Base,
}
