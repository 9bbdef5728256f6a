//! How a VMM ended.

use std::sync::Arc;

/// How a VMM ended.
#[derive(Debug, Clone)]
pub(crate) enum Exit {
    /// The VMM ended by itself, or was killed; the text is its exit status.
    Process(String),
    /// The VMM was killed, since its memory could not be served any more.
    PageServer(Arc<wrenn_snapshot::Error>),
    /// The driver killed the VMM; the text is why, such as that it had stopped answering.
    GivenUp(String),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(status) => f.write_str(status),
            Self::GivenUp(why) => write!(f, "killed, since {why}"),
            Self::PageServer(error) => write!(f, "killed, since its memory could not be read: {error}"),
        }
    }
}
