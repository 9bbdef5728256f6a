//! What happens to sandboxes: kept for a while, and told to who listens.

pub mod follow;

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use wrenn_core::SandboxId;

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::store::contract::Store;
use crate::store::records::{EventRecord, Order, SandboxRecord};

/// The events of all sandboxes.
#[derive(Debug)]
pub struct Events {
    store: Arc<dyn Store>,
    listeners: broadcast::Sender<EventRecord>,
    closing: CancellationToken,
}

/// What has happened to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was made, also by a fork.
    Created,
    /// It is on disk.
    Paused,
    /// It runs again.
    Resumed,
    /// Its time-out or its network is another one.
    Updated,
    /// A snapshot was made of it.
    Checkpointed,
    /// It is over.
    Killed,
}

impl EventKind {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Created, Self::Paused, Self::Resumed, Self::Updated, Self::Checkpointed, Self::Killed];

    /// Its name in records and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::Updated => "updated",
            Self::Checkpointed => "checkpointed",
            Self::Killed => "killed",
        }
    }
}

impl Events {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, listeners: broadcast::Sender::new(LISTENED_MAX), closing: CancellationToken::new() }
    }

    /// Those of an owner, or of one of its sandboxes.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn list(
        &self,
        owner: &str,
        sandbox: Option<&SandboxId>,
        order: Order,
        skipped: u32,
        len_max: u32,
    ) -> Result<Vec<EventRecord>, ServiceError> {
        Ok(self.store.events(owner, sandbox, order, skipped, len_max).await?)
    }

    /// Those of all owners, from now on. Who is slow misses some.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<EventRecord> {
        self.listeners.subscribe()
    }

    /// Lets the listeners go.
    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// Notes an event of a sandbox. It is also the line of the audit: who, what, which.
    pub(super) async fn note(&self, record: &SandboxRecord, kind: EventKind, why: Option<&str>) {
        let event = EventRecord {
            id: format!("ev{:032x}", rand::random::<u128>()),
            owner: record.owner.clone(),
            sandbox: record.id.clone(),
            template: record.template.clone(),
            kind: kind.name().to_owned(),
            why: why.map(str::to_owned),
            at_ms: now_ms(),
        };
        tracing::info!(target: "audit", key = event.owner, sandbox = %event.sandbox, event = event.kind, why);
        if let Err(error) = self.store.add_event(&event).await {
            tracing::warn!(id = %event.sandbox, %error, "an event was not kept");
        }
        // Nobody listens.
        let _ = self.listeners.send(event);
    }
}

/// What a listener may be behind.
const LISTENED_MAX: usize = 1024;
