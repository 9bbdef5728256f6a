//! What each store keeps, and how it is asked.

use std::fmt;

use async_trait::async_trait;
use wrenn_core::SandboxId;

/// A key that clients send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// What it is named by where it is listed and revoked. A part of the key that is no secret.
    pub id: String,
    /// Whose it is, for people.
    pub name: String,
    /// The SHA-256 of the whole key.
    pub hash: Vec<u8>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// Since when it is good for nothing, in milliseconds since 1970.
    pub revoked_at_ms: Option<i64>,
}

/// A sandbox, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRecord {
    /// Its id, the same as `wrenn-core`'s.
    pub id: SandboxId,
    /// The [id](KeyRecord::id) of the key that it was made with.
    pub owner: String,
    /// What it was made from.
    pub template: String,
    /// Its virtual processors.
    pub vcpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// After how many seconds without use it ends.
    pub timeout_sec: u32,
    /// Whether it is paused at that end, and not killed.
    pub pauses_at_timeout: bool,
    /// What it is meant to be.
    pub status: Status,
    /// Why it no longer runs.
    pub why: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When it last began to run, in milliseconds since 1970.
    pub started_at_ms: i64,
    /// When this record last changed, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// Whose a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its name, the same as `wrenn-core`'s.
    pub name: String,
    /// The [id](KeyRecord::id) of the key that it was made with.
    pub owner: String,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// What a sandbox is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It runs, or is to run again when the server does.
    Running,
    /// It is on disk.
    Paused,
    /// It was killed, or its time was over.
    Stopped,
    /// It ended otherwise.
    Error,
}

/// Why a store did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the records cannot be {what}: {remedy}")]
pub struct StoreError {
    /// What was to be done with them, as a participle.
    pub what: &'static str,
    /// What an operator can do.
    pub remedy: &'static str,
    /// The store's answer.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Keeps records. Each call is one transaction.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Adds a key.
    async fn add_key(&self, key: &KeyRecord) -> Result<(), StoreError>;

    /// The key of this id, though it be revoked.
    async fn key(&self, id: &str) -> Result<Option<KeyRecord>, StoreError>;

    /// All keys, the newest first.
    async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Revokes a key; `false` if there is none of this id that is still good.
    async fn revoke_key(&self, id: &str, at_ms: i64) -> Result<bool, StoreError>;

    /// Adds a sandbox.
    async fn add_sandbox(&self, sandbox: &SandboxRecord) -> Result<(), StoreError>;

    /// The sandbox of this id.
    async fn sandbox(&self, id: &SandboxId) -> Result<Option<SandboxRecord>, StoreError>;

    /// All sandboxes of an owner, the newest first.
    async fn sandboxes_of(&self, owner: &str) -> Result<Vec<SandboxRecord>, StoreError>;

    /// All sandboxes that are meant to be something.
    async fn sandboxes_with(&self, status: Status) -> Result<Vec<SandboxRecord>, StoreError>;

    /// Notes what a sandbox is meant to be from now on. `started` is whether it has begun to run with that.
    async fn set_status(
        &self,
        id: &SandboxId,
        status: Status,
        why: Option<&str>,
        started: bool,
        at_ms: i64,
    ) -> Result<(), StoreError>;

    /// Adds a snapshot; `false` if there is a record of that name.
    async fn add_snapshot(&self, snapshot: &SnapshotRecord) -> Result<bool, StoreError>;

    /// All snapshots, by name.
    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError>;

    /// Removes the record of a snapshot, if there is one.
    async fn remove_snapshot(&self, name: &str) -> Result<(), StoreError>;
}

impl Status {
    /// The name of it in records and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Error => "error",
        }
    }

    /// The status of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Running, Self::Paused, Self::Stopped, Self::Error].into_iter().find(|status| status.name() == name)
    }
}
