//! What a sandbox is and where it is in its life: what handles, records and errors say of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::clock::{as_some_unix_ms, as_unix_ms, time_of};
use crate::id::{SandboxId, TemplateName};

/// What of a sandbox does not change, and survives its pauses.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Fixed {
    pub(crate) id: SandboxId,
    pub(crate) template: TemplateName,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    #[serde(default)]
    pub(crate) envs: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) lifetime: Option<Lifetime>,
    #[serde(default)]
    pub(crate) created_at_ms: u64,
}

/// How long a sandbox lives, and what then becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Lifetime {
    pub(crate) ttl: Duration,
    pub(crate) on_expiry: OnExpiry,
    #[serde(default)]
    pub(crate) from: TtlFrom,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { ttl: Duration::MAX, on_expiry: OnExpiry::Kill, from: TtlFrom::Start }
    }
}

/// What a sandbox's time-to-live counts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum TtlFrom {
    /// From its create, from each resume, and from each [`Sandbox::set_ttl`](crate::Sandbox::set_ttl): a fixed end.
    #[default]
    Start,
    /// From its last use: a command or a stream that is under way, a call about its files, a
    /// [`Sandbox::ping`](crate::Sandbox::ping). A sandbox in use does not end.
    LastUse,
}

/// What becomes of a sandbox at the end of its time-to-live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum OnExpiry {
    /// It is killed, and nothing of it is kept.
    Kill,
    /// It is paused: [`Host::paused`](crate::Host::paused) finds it.
    Pause,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SandboxState {
    /// Its machine runs, here or in another program.
    Running,
    /// Its machine is stopped for a pause, a fork or a snapshot.
    Saving,
    /// It is on disk alone.
    Paused,
    /// It was killed, or its machine died.
    Ended,
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Saving => "being saved",
            Self::Paused => "paused",
            Self::Ended => "ended",
        })
    }
}

/// A sandbox as [`Host::sandboxes`](crate::Host::sandboxes) lists it.
///
/// It serializes as an object of these fields; its times become `created_at_ms`, `paused_at_ms` and `expires_at_ms`,
/// milliseconds since 1970.
///
/// ```
/// fn line(info: &wrenn_core::SandboxInfo) -> String {
///     format!("{} is {}, of {}, with {} MiB", info.id, info.state, info.template, info.memory_mib)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SandboxInfo {
    /// Its identity, and its host name.
    pub id: SandboxId,
    /// What it was created from.
    pub template: TemplateName,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// What its creator noted.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    #[serde(rename = "created_at_ms", serialize_with = "as_unix_ms")]
    pub created_at: SystemTime,
    /// When it was last paused; `None` for one that runs in this program, and is told by that alone.
    #[serde(rename = "paused_at_ms", serialize_with = "as_some_unix_ms")]
    pub paused_at: Option<SystemTime>,
    /// When its time is over, if it runs here and that is to come. With [`TtlFrom::LastUse`]: unless it is used.
    #[serde(rename = "expires_at_ms", serialize_with = "as_some_unix_ms")]
    pub expires_at: Option<SystemTime>,
    /// What its last pause stored, in bytes; earlier pauses keep the rest. `None` where `paused_at` is.
    pub stored_bytes: Option<u64>,
}

impl Fixed {
    pub(crate) fn info(&self, state: SandboxState) -> SandboxInfo {
        SandboxInfo {
            id: self.id.clone(),
            template: self.template.clone(),
            state,
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            labels: self.labels.clone(),
            created_at: time_of(self.created_at_ms),
            paused_at: None,
            expires_at: None,
            stored_bytes: None,
        }
    }
}

/// Where a sandbox is in its life, and why it is over if it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) state: SandboxState,
    pub(crate) exit: Option<Exit>,
}

/// Why a sandbox no longer runs, as [`Sandbox::wait`](crate::Sandbox::wait) tells it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
#[non_exhaustive]
pub enum Exit {
    /// It was paused: [`Host::paused`](crate::Host::paused) finds it.
    Paused,
    /// It was killed.
    Killed,
    /// Its last handle was dropped. Its last pause, if it has one, is kept.
    Dropped,
    /// Its time was over, and it was killed, as [`OnExpiry::Kill`] says; nothing of it is kept.
    Expired,
    /// Its time was over, and no pause succeeded, so it was killed. Its last pause, if it has one, is kept.
    NotPaused {
        /// Why the last attempt failed.
        error: String,
    },
    /// Its virtual machine ended: the guest's power-off or panic, a signal to the VMM, or the VMM's own failure.
    VmEnded {
        /// How the VMM ended.
        exit: String,
        /// The last lines that the guest and the VMM printed.
        console: String,
    },
    /// A save failed, and the guest could not go on after it.
    Broken {
        /// What failed.
        error: String,
        /// The last lines that the guest and the VMM printed.
        console: String,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused => f.write_str("it was paused"),
            Self::Killed => f.write_str("it was killed"),
            Self::Dropped => f.write_str("its last handle was dropped"),
            Self::Expired => f.write_str("its time-to-live was over"),
            Self::NotPaused { error } => write!(f, "its time-to-live was over, and it could not be paused: {error}"),
            Self::VmEnded { exit, .. } => write!(f, "its virtual machine ended ({exit})"),
            Self::Broken { error, .. } => write!(f, "it could not go on after a save that failed: {error}"),
        }
    }
}
