//! What is kept: keys, sandboxes as they were asked for, snapshots, builds, requests and events.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize, Serializer};
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
    /// What it may do, and until when.
    pub terms: Terms,
}

/// What a key may do, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// When it ends, in milliseconds since 1970; `None` for never.
    pub expires_at_ms: Option<i64>,
    /// Whether it may only look.
    pub reads_only: bool,
    /// Whether it may read what the server counts of all keys.
    pub operates: bool,
    /// How many sandboxes of it may run at once; `None` for as many as the server bears, and so below.
    pub sandboxes_max: Option<u32>,
    /// How many virtual processors its running sandboxes may have together.
    pub vcpus_max: Option<u32>,
    /// How much memory its running sandboxes may have together, in MiB.
    pub memory_mib_max: Option<u64>,
    /// How much disk may be kept for it, in MiB: for its paused sandboxes, checkpoints, snapshots and builds.
    pub stored_mib_max: Option<u64>,
    /// How many requests it may send in a second, on average.
    pub requests_per_sec_max: Option<u32>,
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
    /// After how many seconds it ends.
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
    /// What else was asked for.
    pub asked: Asked,
}

/// What of a sandbox was asked for that no query asks about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asked {
    /// The client's own notes on it.
    pub labels: BTreeMap<String, String>,
    /// Where its time-out counts from.
    pub timeout_from: TimeoutFrom,
    /// Whether a request to one of its ports resumes it.
    pub wakes: bool,
    /// What it may reach, and who may reach it.
    pub network: Network,
    /// The size of its drive, in MiB, which is its template's.
    pub disk_mib: u32,
    /// The name that its template was built under, if it was built.
    pub built_as: Option<String>,
}

/// Where a time-out counts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeoutFrom {
    /// The last command, call about files, connection or ping.
    #[default]
    LastUse,
    /// The start, or when it was last set.
    Start,
}

/// What a sandbox may reach, and who may reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Whether it reaches the public internet; `None` where nothing was said, which is yes.
    pub internet: Option<bool>,
    /// What it reaches in any case: networks, addresses and names.
    pub allow: Vec<String>,
    /// What it does not reach unless that is allowed: networks and addresses.
    pub deny: Vec<String>,
    /// The headers that are put into its requests to a name, by the name.
    pub headers: BTreeMap<String, BTreeMap<String, String>>,
    /// The DNS servers that are asked for it; `None` for the host's.
    pub dns_servers: Option<Vec<IpAddr>>,
    /// The SOCKS5 proxy by which its connections leave; `None` where they leave by themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<EgressProxy>,
    /// Who reaches its ports.
    pub inbound: Inbound,
}

/// The SOCKS5 proxy by which a sandbox's connections leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressProxy {
    /// `HOST:PORT`.
    pub address: String,
    /// What it is told; `None` where it asks for nothing.
    pub credentials: Option<ProxyCredentials>,
    /// How it is spoken to within TLS; `None` without TLS.
    pub tls: Option<ProxyTls>,
}

/// Whom a proxy is told that a connection is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyCredentials {
    /// What the library asks for them by. No other credentials have that name.
    pub name: String,
    /// The username.
    pub username: String,
    /// The password.
    #[serde(serialize_with = "Hidden::as_it_is")]
    pub password: Hidden,
}

/// How a proxy is spoken to within TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyTls {
    /// The name that its certificate has to be for; `None` for its host's.
    pub server_name: Option<String>,
    /// Who has to certify it, in PEM; `None` for whom this machine trusts.
    pub authority: Option<String>,
}

/// Who reaches a sandbox's ports through the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inbound {
    /// Whether a request needs the sandbox's token for that.
    pub needs_token: bool,
    /// The `Host` that a guest's server is shown, in which `${PORT}` is the port; `None` for `localhost:${PORT}`.
    pub host: Option<String>,
    /// The ports on which the guest speaks TLS.
    pub tls_ports: Vec<u16>,
}

/// Whose a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its name, the same as `wrenn-core`'s.
    pub name: String,
    /// The [id](KeyRecord::id) of the key that it was made with.
    pub owner: String,
    /// The virtual processors of its sandboxes.
    pub vcpus: u32,
    /// The memory of its sandboxes, in MiB.
    pub memory_mib: u32,
    /// The size of their drives, in MiB.
    pub disk_mib: u32,
    /// The id of the sandbox that it was made of, or `build:` and the name that it was built under; empty where that was not
    /// noted.
    pub source: String,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// Which template a name with a tag stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    /// The [id](KeyRecord::id) of the key that it stands for it for.
    pub owner: String,
    /// The name, which may be that of a template.
    pub name: String,
    /// The tag, in small letters.
    pub tag: String,
    /// The template's name.
    pub template: String,
    /// When it was assigned, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// A build of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRecord {
    /// By which clients name it.
    pub id: String,
    /// The [id](KeyRecord::id) of its key.
    pub owner: String,
    /// When it was asked for, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When its status last changed, in milliseconds since 1970.
    pub changed_at_ms: i64,
    /// What was asked for, how far it is, and the end of its log. No query asks about that.
    pub told: serde_json::Value,
}

/// A request that makes a sandbox, and that its client may send twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// The SHA-256 of its body.
    pub digest: Vec<u8>,
    /// What it has made; `None` while it is under way.
    pub sandbox: Option<SandboxId>,
    /// When it came, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// Something that has happened to a sandbox, or to a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// A name that no other event has.
    pub id: String,
    /// The [id](KeyRecord::id) of the key that the sandbox or the build was made with.
    pub owner: String,
    /// What it has happened to.
    pub subject: Subject,
    /// What the sandbox was made from, or the name that is built.
    pub template: String,
    /// What has happened, such as `paused`.
    pub kind: String,
    /// Why, where that is told.
    pub why: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// What an event has happened to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A sandbox.
    Sandbox(SandboxId),
    /// A build of a template, by its id.
    Build(String),
}

/// Which events are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsOf<'a> {
    /// All.
    Everything,
    /// Those of sandboxes.
    Sandboxes,
    /// Those of one sandbox.
    Sandbox(&'a SandboxId),
}

/// Where a key wants to be told what happens to its sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRecord {
    /// A name that no other webhook has.
    pub id: String,
    /// The [id](KeyRecord::id) of the key.
    pub owner: String,
    /// What it is called, for people.
    pub name: String,
    /// Where events are sent.
    pub url: String,
    /// Whether they are sent.
    pub is_enabled: bool,
    /// Which [kinds](EventRecord::kind) of events; an empty list stands for all.
    pub kinds: Vec<String>,
    /// What deliveries are signed with.
    pub secret: Hidden,
    /// Since when each delivery has failed, in milliseconds since 1970.
    pub failing_since_ms: Option<i64>,
    /// Why the last one has.
    pub why: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// An event that is to be brought to a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRecord {
    /// A name that no other delivery has.
    pub id: String,
    /// The [id](WebhookRecord::id) of the webhook.
    pub webhook: String,
    /// The event.
    pub event: EventRecord,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next, in milliseconds since 1970.
    pub due_at_ms: i64,
}

/// A text that no log shows.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Hidden(pub String);

impl Hidden {
    /// Writes it into a record, which is for the server alone. It has no `Serialize`, so that no answer has it by mistake.
    fn as_it_is<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
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

/// A page of a list of sandboxes.
#[derive(Debug, Clone)]
pub struct Page<'a> {
    /// Whose they are.
    pub owner: &'a str,
    /// What they are meant to be: one of these.
    pub statuses: &'a [Status],
    /// What they are sorted by. Those of one millisecond are sorted by their ids.
    pub by: By,
    /// Which come first.
    pub order: Order,
    /// The last one of the page before, by its time and its id.
    pub after: Option<(i64, String)>,
    /// How many there are on it at most.
    pub len_max: u32,
}

/// What a list of sandboxes is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// When each was made.
    Created,
    /// When each last began to run.
    Started,
}

/// What comes first in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The newest.
    NewestFirst,
    /// The oldest.
    OldestFirst,
}

/// What the running sandboxes of a key have together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many there are.
    pub sandboxes: u64,
    /// Their virtual processors.
    pub vcpus: u64,
    /// Their memory, in MiB.
    pub memory_mib: u64,
}

impl Subject {
    /// The sandbox, if it is one.
    #[must_use]
    pub fn sandbox(&self) -> Option<&SandboxId> {
        match self {
            Self::Sandbox(id) => Some(id),
            Self::Build(_) => None,
        }
    }

    /// The build's id, if it is one.
    #[must_use]
    pub fn build(&self) -> Option<&str> {
        match self {
            Self::Sandbox(_) => None,
            Self::Build(id) => Some(id),
        }
    }
}

impl WebhookRecord {
    /// Whether it wants events of a [kind](EventRecord::kind).
    #[must_use]
    pub fn wants(&self, kind: &str) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|one| one == kind)
    }
}

impl SandboxRecord {
    /// The name of its template for clients: one that was built has the name that it was built under.
    #[must_use]
    pub fn template_name(&self) -> &str {
        self.asked.built_as.as_deref().unwrap_or(&self.template)
    }
}

impl Status {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Running, Self::Paused, Self::Stopped, Self::Error];

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
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}
