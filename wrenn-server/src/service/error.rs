//! Why something that was asked for is not done.

use std::time::Duration;

use wrenn_core::{Error, SandboxId};

use crate::store::contract::StoreError;

/// Why something that was asked for is not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The key has no such sandbox.
    #[error("there is no sandbox {id} of this key: a list of its sandboxes has those that there are")]
    NoSandbox {
        /// The sandbox, as it was named.
        id: String,
    },
    /// The key has no such snapshot.
    #[error("there is no snapshot {name:?} of this key: a list of its snapshots has those that there are")]
    NoSnapshot {
        /// The snapshot, as it was named.
        name: String,
    },
    /// The event that others are to come after is not kept, or was too long ago.
    #[error("there is no event {id:?} of this key, or too many came after it: list them, and listen from now on")]
    NoEvent {
        /// The event, as it was named.
        id: String,
    },
    /// The key has no such webhook.
    #[error("there is no webhook {id:?} of this key: a list of its webhooks has those that there are")]
    NoWebhook {
        /// The webhook, as it was named.
        id: String,
    },
    /// A webhook cannot be as it was asked for.
    #[error("{why}")]
    BadWebhook {
        /// What is wrong with it.
        why: String,
    },
    /// A webhook would be sent where this server's clients may not reach.
    #[error("{why}")]
    NotPublic {
        /// What is wrong with its address.
        why: String,
    },
    /// A proxy cannot be as it was asked for.
    #[error("the egress proxy cannot be used: {why}")]
    BadProxy {
        /// What is wrong with it, without what was written, which may be a password.
        why: &'static str,
    },
    /// The key has no such build, or it was too long ago.
    #[error("there is no build {id:?} of this key, or the server has ended since it began: builds are kept for a day")]
    NoBuild {
        /// The build, as it was named.
        id: String,
    },
    /// A build cannot be as it was asked for.
    #[error("{why}")]
    BadBuild {
        /// What is wrong with it.
        why: String,
    },
    /// The build has begun, or is over.
    #[error("the build {id} is {status}: ask for another one")]
    BuildBegun {
        /// The build.
        id: String,
        /// How far it is.
        status: &'static str,
    },
    /// Files that are sent for builds are larger than they may be.
    #[error("the files that are sent have {max} bytes at most: leave some out, such as by a .dockerignore")]
    UploadTooLarge {
        /// How many bytes there may be.
        max: u64,
    },
    /// Nothing came for a while.
    #[error("nothing came for a while: send it again")]
    TooSlow,
    /// There are as many as there may be.
    #[error("{of} has {max} {what} at most: remove some")]
    TooMany {
        /// What has them.
        of: &'static str,
        /// What there are too many of.
        what: &'static str,
        /// How many there may be.
        max: usize,
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
    /// The key may have no more.
    #[error("this key may have {max} {what} at once: end or pause some, or have its limit raised")]
    LimitReached {
        /// What is limited.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The key has as much on disk as it may have.
    #[error(
        "{used_mib} MiB of disk are kept for this key, which may have {max_mib}: delete paused sandboxes, snapshots or builds, or have its limit raised"
    )]
    StoredLimit {
        /// How much is kept for it, in MiB.
        used_mib: u64,
        /// How much it may have, in MiB.
        max_mib: u64,
    },
    /// No machine of that size is to be had here.
    #[error(
        "sandboxes of this server have {vcpus_max} virtual processors and {memory_mib_max} MiB of memory in all: ask for less"
    )]
    TooLarge {
        /// Its virtual processors in all.
        vcpus_max: u32,
        /// Its memory in all, in MiB.
        memory_mib_max: u32,
    },
    /// Others have all that there is.
    #[error("this server has no room for it, and none became free in {} seconds: try again later", waited.as_secs())]
    Full {
        /// How long it has waited for its turn.
        waited: Duration,
    },
    /// A request of the same name was another one.
    #[error("a request with this key of its own had another body: send each new request with a new key")]
    RequestMismatch,
    /// A request of the same name is not done yet.
    #[error("the request with this key of its own is under way: ask again in some seconds")]
    RequestUnderWay,
    /// The server ended while it did a request of the same name.
    #[error(
        "the server ended in the middle of the request with this key of its own: look at the list of sandboxes, then send it with a new key"
    )]
    RequestUnknown,
    /// It failed in `wrenn-core`.
    #[error(transparent)]
    Sandbox(#[from] wrenn_core::Error),
    /// What clients send cannot be written to the disk.
    #[error("the files cannot be kept on this machine's disk")]
    Disk(#[from] std::io::Error),
    /// The records cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The work has panicked.
    #[error("the server failed at it: its log says how")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Whose matter it is that something was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// What was asked for cannot be had, or not now.
    Client,
    /// A command took longer than it was given.
    Time,
    /// This machine or its guest failed.
    Server,
}

impl ServiceError {
    pub(super) fn blame(&self) -> Blame {
        match self {
            Self::Sandbox(Error::CommandTimedOut { .. }) => Blame::Time,
            Self::Sandbox(
                Error::InvalidInput { .. }
                | Error::NotFound { .. }
                | Error::AlreadyExists { .. }
                | Error::InvalidState { .. }
                | Error::OutputTooLong { .. },
            ) => Blame::Client,
            Self::Sandbox(_) | Self::Disk(_) | Self::Store(_) | Self::Panicked(_) => Blame::Server,
            Self::TooSlow => Blame::Time,
            _ => Blame::Client,
        }
    }
}

struct Because<'a>(Option<&'a str>);

impl std::fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}
