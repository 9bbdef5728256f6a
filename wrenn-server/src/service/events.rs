//! What happens to sandboxes and builds: kept for a while, and told to who listens.

pub mod follow;

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::service::builds::Build;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::store::contract::Store;
use crate::store::records::{EventRecord, EventsOf, Order, SandboxRecord, Subject};

/// The events of all sandboxes and builds.
#[derive(Debug)]
pub struct Events {
    store: Arc<dyn Store>,
    listeners: broadcast::Sender<EventRecord>,
    closing: CancellationToken,
}

/// What has happened to a sandbox, or to a build of a template.
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
    /// A build has its share of the machine, and begins.
    BuildStarted,
    /// The template is there.
    BuildSucceeded,
    /// A build has failed, or was cancelled.
    BuildFailed,
}

impl EventKind {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Created,
        Self::Paused,
        Self::Resumed,
        Self::Updated,
        Self::Checkpointed,
        Self::Killed,
        Self::BuildStarted,
        Self::BuildSucceeded,
        Self::BuildFailed,
    ];

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
            Self::BuildStarted => "build_started",
            Self::BuildSucceeded => "build_succeeded",
            Self::BuildFailed => "build_failed",
        }
    }
}

impl Events {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, listeners: broadcast::Sender::new(LISTENED_MAX), closing: CancellationToken::new() }
    }

    /// Those of an owner that are wanted.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn list(
        &self,
        owner: &str,
        of: EventsOf<'_>,
        order: Order,
        skipped: u32,
        len_max: u32,
    ) -> Result<Vec<EventRecord>, ServiceError> {
        Ok(self.store.events(owner, of, order, skipped, len_max).await?)
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

    /// Notes an event of a sandbox.
    pub(super) async fn note(&self, record: &SandboxRecord, kind: EventKind, why: Option<&str>) {
        let subject = Subject::Sandbox(record.id.clone());
        self.keep(event(&record.owner, subject, &record.template, kind, why)).await;
    }

    /// Notes an event of a build.
    pub(super) async fn note_build(&self, build: &Build, kind: EventKind, why: Option<&str>) {
        let subject = Subject::Build(build.id.clone());
        self.keep(event(&build.owner, subject, &build.wanted.name, kind, why)).await;
    }

    /// Keeps an event and tells it. It is also the line of the audit: who, what, which.
    async fn keep(&self, event: EventRecord) {
        let sandbox = event.subject.sandbox().map(tracing::field::display);
        let (build, why) = (event.subject.build(), event.why.as_deref());
        tracing::info!(target: "audit", key = event.owner, sandbox, build, event = event.kind, why);
        match self.store.add_event(&event, WAITING_MAX).await {
            Ok(full) => full.iter().for_each(|webhook| {
                tracing::warn!(id = event.id, webhook, "an event is not brought to a webhook: too many wait for it");
            }),
            Err(error) => {
                tracing::warn!(id = event.id, kind = event.kind, %error, "an event was not kept, and no webhook gets it");
            }
        }
        // Nobody listens.
        let _ = self.listeners.send(event);
    }
}

fn event(owner: &str, subject: Subject, template: &str, kind: EventKind, why: Option<&str>) -> EventRecord {
    EventRecord {
        id: format!("ev{:032x}", rand::random::<u128>()),
        owner: owner.to_owned(),
        subject,
        template: template.to_owned(),
        kind: kind.name().to_owned(),
        why: why.map(str::to_owned),
        at_ms: now_ms(),
    }
}

/// What may wait for one webhook.
const WAITING_MAX: u32 = 1000;
/// What a listener may be behind.
const LISTENED_MAX: usize = 1024;
