//! How each store is asked.

use std::fmt;

use async_trait::async_trait;
use wrenn_core::SandboxId;

use crate::store::records::{
    Asked, BuildRecord, DeliveryRecord, EventRecord, EventsOf, KeyRecord, Order, Page, RequestRecord, SandboxRecord,
    SnapshotRecord, Status, TagRecord, Usage, WebhookRecord,
};

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

/// Keeps the events that are still to be brought to webhooks.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// What is to be brought of one event, by its id, or of all; the oldest events first.
    async fn deliveries(&self, event: Option<&str>) -> Result<Vec<DeliveryRecord>, StoreError>;

    /// Notes how often a delivery was tried, and when it is tried next.
    async fn note_delivery(&self, id: &str, attempts: u32, due_at_ms: i64) -> Result<(), StoreError>;

    /// Removes a delivery, if it is there: it was brought, or is given up.
    async fn remove_delivery(&self, id: &str) -> Result<(), StoreError>;
}

/// Keeps records. Each call is one transaction.
#[async_trait]
pub trait Store: Outbox + fmt::Debug + Send + Sync {
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

    /// A page of an owner's sandboxes.
    async fn page(&self, page: &Page<'_>) -> Result<Vec<SandboxRecord>, StoreError>;

    /// All sandboxes that are meant to be something.
    async fn sandboxes_with(&self, status: Status) -> Result<Vec<SandboxRecord>, StoreError>;

    /// What the running sandboxes of an owner have together.
    async fn usage(&self, owner: &str) -> Result<Usage, StoreError>;

    /// Notes what a sandbox is meant to be from now on. `started` is whether it has begun to run with that.
    async fn set_status(
        &self,
        id: &SandboxId,
        status: Status,
        why: Option<&str>,
        started: bool,
        at_ms: i64,
    ) -> Result<(), StoreError>;

    /// Notes after how many seconds a sandbox ends.
    async fn set_timeout(&self, id: &SandboxId, timeout_sec: u32, at_ms: i64) -> Result<(), StoreError>;

    /// Notes what else was asked for.
    async fn set_asked(&self, id: &SandboxId, asked: &Asked, at_ms: i64) -> Result<(), StoreError>;

    /// Adds a snapshot; `false` if there is a record of that name.
    async fn add_snapshot(&self, snapshot: &SnapshotRecord) -> Result<bool, StoreError>;

    /// Notes what the snapshot of this name and owner is from now on; `false` if there is none. Tags that stand for it stay.
    async fn set_snapshot(&self, snapshot: &SnapshotRecord) -> Result<bool, StoreError>;

    /// The snapshot of this name.
    async fn snapshot(&self, name: &str) -> Result<Option<SnapshotRecord>, StoreError>;

    /// All snapshots, by name.
    async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, StoreError>;

    /// Removes the record of a snapshot, if there is one, and the tags that stand for it.
    async fn remove_snapshot(&self, name: &str) -> Result<(), StoreError>;

    /// Assigns tags, also those that are assigned.
    async fn set_tags(&self, tags: &[TagRecord]) -> Result<(), StoreError>;

    /// What a name with a tag stands for.
    async fn tag(&self, owner: &str, name: &str, tag: &str) -> Result<Option<TagRecord>, StoreError>;

    /// The tags of an owner's name, sorted.
    async fn tags(&self, owner: &str, name: &str) -> Result<Vec<TagRecord>, StoreError>;

    /// The tags that stand for a template, whosever they are.
    async fn tags_of(&self, template: &str) -> Result<Vec<TagRecord>, StoreError>;

    /// Removes a tag, if it is there.
    async fn remove_tag(&self, owner: &str, name: &str, tag: &str) -> Result<(), StoreError>;

    /// Notes how far a build is, which may be new.
    async fn set_build(&self, build: &BuildRecord) -> Result<(), StoreError>;

    /// All builds, the oldest first.
    async fn builds(&self) -> Result<Vec<BuildRecord>, StoreError>;

    /// Removes the record of a build, if it is there.
    async fn remove_build(&self, id: &str) -> Result<(), StoreError>;

    /// Notes that a request of this key, which is its client's name for it, has begun; gives the one that had that name
    /// before, and then notes nothing.
    async fn begin_request(
        &self,
        owner: &str,
        key: &str,
        digest: &[u8],
        at_ms: i64,
    ) -> Result<Option<RequestRecord>, StoreError>;

    /// Notes what a request has made. Without a sandbox it is forgotten.
    async fn end_request(&self, owner: &str, key: &str, sandbox: Option<&SandboxId>) -> Result<(), StoreError>;

    /// Adds an event, and a delivery of it to each webhook that wants it. Returns the ids of the webhooks that get none,
    /// since they have `waiting_max` deliveries already.
    async fn add_event(&self, event: &EventRecord, waiting_max: u32) -> Result<Vec<String>, StoreError>;

    /// The events of an owner that are wanted, beyond the first `skipped` of that order.
    async fn events(
        &self,
        owner: &str,
        of: EventsOf<'_>,
        order: Order,
        skipped: u32,
        len_max: u32,
    ) -> Result<Vec<EventRecord>, StoreError>;

    /// The first events of an owner after the one of this id; `None` if there is none of it.
    async fn events_after(&self, owner: &str, id: &str, len_max: u32) -> Result<Option<Vec<EventRecord>>, StoreError>;

    /// Adds a webhook.
    async fn add_webhook(&self, webhook: &WebhookRecord) -> Result<(), StoreError>;

    /// The webhook of this id.
    async fn webhook(&self, id: &str) -> Result<Option<WebhookRecord>, StoreError>;

    /// The webhooks of an owner, the oldest first.
    async fn webhooks(&self, owner: &str) -> Result<Vec<WebhookRecord>, StoreError>;

    /// Notes what a webhook is from now on; its owner and the time when it was made stay.
    async fn set_webhook(&self, webhook: &WebhookRecord) -> Result<(), StoreError>;

    /// Notes how a webhook fares. One that is disabled stays so.
    async fn note_webhook(
        &self,
        id: &str,
        is_enabled: bool,
        failing_since_ms: Option<i64>,
        why: Option<&str>,
    ) -> Result<(), StoreError>;

    /// Removes a webhook, if it is there, and what was to be brought to it.
    async fn remove_webhook(&self, id: &str) -> Result<(), StoreError>;

    /// Forgets the requests and events before a time, and what is to be brought of them.
    async fn forget_before(&self, at_ms: i64) -> Result<(), StoreError>;

    /// Whether it answers.
    async fn check(&self) -> Result<(), StoreError>;
}
