//! Why something that was asked for is not done.

use wrenn_core::SandboxId;

use crate::store::contract::StoreError;

/// Why something that was asked for is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The key has no such sandbox.
    #[error("there is no sandbox {id} of this key: GET /v1/sandboxes lists those that there are")]
    NoSandbox {
        /// The sandbox, as it was named.
        id: String,
    },
    /// The key has no such snapshot.
    #[error("there is no snapshot {name:?} of this key: GET /v1/snapshots lists those that there are")]
    NoSnapshot {
        /// The snapshot, as it was named.
        name: String,
    },
    /// It does not run, and is not paused.
    #[error("sandbox {id} is {status}{}: make another one", Because(why.as_deref()))]
    Over {
        /// The sandbox.
        id: SandboxId,
        /// Its status.
        status: &'static str,
        /// Why.
        why: Option<String>,
    },
    /// The server pauses what runs, and takes nothing more.
    #[error("the server is being shut down: try again in some seconds")]
    Closing,
    /// It failed in `wrenn-core`.
    #[error(transparent)]
    Sandbox(#[from] wrenn_core::Error),
    /// The records cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The work has panicked.
    #[error("the server failed at it: its log says how")]
    Panicked(#[from] tokio::task::JoinError),
}

struct Because<'a>(Option<&'a str>);

impl std::fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}
