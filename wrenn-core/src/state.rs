//! The state of a sandbox, its fixed properties, and the reason of its end. Handles, records and errors use these
//! types.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use wrenn_net::{Limits, NetworkPolicy};

use crate::clock::{as_some_unix_ms, as_unix_ms, time_of};
use crate::defaults::Defaults;
use crate::id::{SandboxId, TemplateName};

/// The properties of a sandbox that survive its pauses. Only the lifetime, the network policy and the published
/// ports are ever replaced.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Fixed {
    pub(crate) id: SandboxId,
    pub(crate) template: TemplateName,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    /// The template's variables, and those of the create.
    #[serde(default)]
    pub(crate) envs: BTreeMap<String, String>,
    /// What the template says. Its variables are in `envs` too, unless the create named them.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) lifetime: Option<Lifetime>,
    #[serde(default)]
    pub(crate) created_at_ms: u64,
    #[serde(default)]
    pub(crate) network: NetworkPolicy,
    #[serde(default)]
    pub(crate) network_limits: Limits,
    /// Those of a sandbox's own: a fork's children have none.
    #[serde(default)]
    pub(crate) published: Vec<PublishedPort>,
}

/// A port of the guest's that is a listener of the host's: see [`Sandbox::publish`](crate::Sandbox::publish).
///
/// ```no_run
/// # async fn demo(sandbox: wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let port = sandbox.publish(8000, wrenn_core::PublishOptions::default()).await?;
/// println!("http://{}/", port.address);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct PublishedPort {
    /// The guest's port.
    pub guest_port: u16,
    /// The address and the port on the host.
    pub address: SocketAddr,
    /// Whether a connection wakes the sandbox while it is paused: see
    /// [`PublishOptions::wake`](crate::PublishOptions::wake).
    #[serde(default)]
    pub wake: bool,
    /// Why it is not open, if it is not: at a resume another program may have the port.
    #[serde(skip)]
    pub problem: Option<String>,
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
///
/// ```
/// use wrenn_core::TtlFrom;
///
/// assert_eq!(TtlFrom::default(), TtlFrom::Start);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum TtlFrom {
    /// The time counts from the sandbox's create, and anew from each resume and each
    /// [`Sandbox::set_ttl`](crate::Sandbox::set_ttl). Use of the sandbox does not move its end.
    #[default]
    Start,
    /// The time counts from the sandbox's last use. A command or a stream that is under way, a call about files, and a
    /// [`Sandbox::ping`](crate::Sandbox::ping) are uses. A sandbox in use does not end.
    LastUse,
}

/// What becomes of a sandbox at the end of its time-to-live.
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// use std::time::Duration;
/// use wrenn_core::{OnExpiry, Sandbox};
///
/// let hour = Duration::from_secs(3600);
/// let sandbox = Sandbox::builder(host, "base").ttl(hour).on_expiry(OnExpiry::Pause).create().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum OnExpiry {
    /// The sandbox is killed, and nothing of it is kept.
    Kill,
    /// The sandbox is paused: [`Host::paused`](crate::Host::paused) finds it.
    Pause,
}

/// Where a sandbox is in its life.
///
/// ```
/// use wrenn_core::SandboxState;
///
/// assert_eq!(SandboxState::Saving.to_string(), "being saved");
/// assert_eq!(serde_json::to_string(&SandboxState::Paused)?, r#""paused""#);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SandboxState {
    /// The sandbox's machine runs, in this program or in another one.
    Running,
    /// A pause, a fork or a snapshot of the sandbox is under way; the machine stands still for a part of that time.
    Saving,
    /// The sandbox is on disk, and no machine runs.
    Paused,
    /// The sandbox was killed, or its machine ended.
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
/// It serializes as an object of these fields; its times become `created_at_ms`, `paused_at_ms`, `expires_at_ms` and
/// `last_used_at_ms`,
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
    /// The sandbox's identity, which is also the guest's host name.
    pub id: SandboxId,
    /// The template that the sandbox was created from.
    pub template: TemplateName,
    /// Where the sandbox is in its life.
    pub state: SandboxState,
    /// How many virtual processors the guest has.
    pub vcpus: u32,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// The labels that the sandbox was created with.
    pub labels: BTreeMap<String, String>,
    /// When the sandbox was created.
    #[serde(rename = "created_at_ms", serialize_with = "as_unix_ms")]
    pub created_at: SystemTime,
    /// When the sandbox was last paused; `None` for one that runs in this program, even if it was paused before.
    #[serde(rename = "paused_at_ms", serialize_with = "as_some_unix_ms")]
    pub paused_at: Option<SystemTime>,
    /// When the sandbox's time-to-live ends. `None` where it has none, and for a sandbox that does not run in this
    /// program. With [`TtlFrom::LastUse`] this is the end if nobody uses the sandbox until then.
    #[serde(rename = "expires_at_ms", serialize_with = "as_some_unix_ms")]
    pub expires_at: Option<SystemTime>,
    /// When it was last used: by a command, a call about files, a connection or a ping. `None` where it does not run in this
    /// program.
    #[serde(rename = "last_used_at_ms", serialize_with = "as_some_unix_ms")]
    pub last_used_at: Option<SystemTime>,
    /// What the last pause stored, in bytes, without what it shares with earlier pauses. `None` where `paused_at` is
    /// `None`.
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
            last_used_at: None,
            stored_bytes: None,
        }
    }
}

/// Where a sandbox is in its life, and why it no longer runs if that is so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) state: SandboxState,
    pub(crate) exit: Option<Exit>,
}

/// Why a sandbox no longer runs, as [`Sandbox::wait`](crate::Sandbox::wait) tells it.
///
/// ```
/// use wrenn_core::Exit;
///
/// assert_eq!(Exit::Expired.to_string(), "its time-to-live was over");
/// assert_eq!(serde_json::to_string(&Exit::Killed)?, r#"{"why":"killed"}"#);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
#[non_exhaustive]
pub enum Exit {
    /// The sandbox was paused: [`Host::paused`](crate::Host::paused) finds it.
    Paused,
    /// The sandbox was killed.
    Killed,
    /// The last handle of the sandbox was dropped. The last pause, if there is one, is kept.
    Dropped,
    /// The time-to-live ended, and the sandbox was killed as [`OnExpiry::Kill`] says. Nothing of it is kept.
    Expired,
    /// The time-to-live ended, and the sandbox was killed since three attempts to pause it failed. The last pause, if
    /// there is one, is kept.
    NotPaused {
        /// Why the last attempt failed.
        error: String,
    },
    /// The virtual machine ended: the guest powered off or panicked, the VMM got a signal, or the VMM failed.
    VmEnded {
        /// How the VMM ended.
        exit: String,
        /// The last lines that the guest and the VMM printed.
        console: String,
    },
    /// A pause, a fork or a snapshot failed or took too long, and the guest could not go on after it.
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
