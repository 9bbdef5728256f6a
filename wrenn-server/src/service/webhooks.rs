//! Webhooks: where each key wants to be told what happens to its sandboxes.
//!
//! ```text
//!  events ──▶ store: a delivery for each webhook ──▶ courier: a task for each ──▶ target: an address that may be asked ──▶ the receiver
//!               ▲                                     │  again after a failure      signature ──▶ headers
//!               └── tried: once more; brought: removed ┘──▶ health ──▶ the record: since when it fails, and why
//! ```
//!
//! An event and its deliveries are kept in one transaction, and a delivery is removed when its receiver has answered. So the
//! server's end, of whatever kind, loses none, and one whose answer was lost is brought twice, with the same id.

pub mod courier;
mod health;
mod signature;
pub mod target;

use std::sync::Arc;

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::events::EventKind;
use crate::service::webhooks::target::{NoTarget, Reach};
use crate::store::contract::Store;
use crate::store::records::{Hidden, WebhookRecord};

/// The webhooks of all keys.
#[derive(Debug)]
pub struct Webhooks {
    store: Arc<dyn Store>,
    reach: Reach,
}

/// What a webhook is to be; what is left out stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// What it is called, for people.
    pub name: Option<String>,
    /// Where events are sent.
    pub url: Option<String>,
    /// Whether they are sent.
    pub is_enabled: Option<bool>,
    /// Which events, by their names; an empty list stands for all.
    pub kinds: Option<Vec<String>>,
    /// What deliveries are signed with.
    pub secret: Option<Hidden>,
}

impl Webhooks {
    /// Those that a store has, which reach what `reach` says.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, reach: Reach) -> Self {
        Self { store, reach }
    }

    /// Those of an owner, the oldest first.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn list(&self, owner: &str) -> Result<Vec<WebhookRecord>, ServiceError> {
        Ok(self.store.webhooks(owner).await?)
    }

    /// One of an owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoWebhook`], [`ServiceError::Store`].
    pub async fn find(&self, owner: &str, id: &str) -> Result<WebhookRecord, ServiceError> {
        let found = self.store.webhook(id).await?.filter(|webhook| webhook.owner == owner);
        found.ok_or_else(|| ServiceError::NoWebhook { id: id.to_owned() })
    }

    /// Makes one. It has to have an address and a secret.
    ///
    /// # Errors
    /// [`ServiceError::BadWebhook`], [`ServiceError::NotPublic`], [`ServiceError::TooMany`], [`ServiceError::Store`].
    pub async fn add(&self, owner: &str, wanted: Wanted) -> Result<WebhookRecord, ServiceError> {
        let lacks = |what| bad(format!("a webhook has {what}: name one"));
        if wanted.url.is_none() {
            return Err(lacks("a url"));
        }
        if wanted.secret.is_none() {
            return Err(lacks("a secret, which its deliveries are signed with"));
        }
        if self.store.webhooks(owner).await?.len() >= WEBHOOKS_MAX {
            return Err(ServiceError::TooMany { of: "a key", what: "webhooks", max: WEBHOOKS_MAX });
        }
        let none = WebhookRecord {
            id: format!("wh{:032x}", rand::random::<u128>()),
            owner: owner.to_owned(),
            name: String::new(),
            url: String::new(),
            is_enabled: true,
            kinds: Vec::new(),
            secret: Hidden::default(),
            failing_since_ms: None,
            why: None,
            created_at_ms: now_ms(),
        };
        let webhook = self.changed(none, wanted).await?;
        self.store.add_webhook(&webhook).await?;
        Ok(webhook)
    }

    /// Changes one of an owner's. When it is enabled, what has failed before is forgotten.
    ///
    /// # Errors
    /// [`ServiceError::NoWebhook`], [`ServiceError::BadWebhook`], [`ServiceError::NotPublic`], [`ServiceError::Store`].
    pub async fn change(&self, owner: &str, id: &str, wanted: Wanted) -> Result<WebhookRecord, ServiceError> {
        let before = self.find(owner, id).await?;
        let webhook = self.changed(before, wanted).await?;
        self.store.set_webhook(&webhook).await?;
        Ok(webhook)
    }

    /// Removes one of an owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoWebhook`], [`ServiceError::Store`].
    pub async fn remove(&self, owner: &str, id: &str) -> Result<(), ServiceError> {
        self.find(owner, id).await?;
        Ok(self.store.remove_webhook(id).await?)
    }

    async fn changed(&self, before: WebhookRecord, wanted: Wanted) -> Result<WebhookRecord, ServiceError> {
        let Wanted { name, url, is_enabled, kinds, secret } = wanted;
        if name.as_ref().is_some_and(|name| name.chars().count() > NAME_MAX) {
            return Err(bad(format!("name has {NAME_MAX} characters at most")));
        }
        if secret.as_ref().is_some_and(|Hidden(secret)| !(1..=SECRET_BYTES_MAX).contains(&secret.len())) {
            return Err(bad(format!("the secret has 1 to {SECRET_BYTES_MAX} bytes")));
        }
        let is_kind = |kind: &String| EventKind::ALL.iter().any(|one| one.name() == kind);
        if let Some(unknown) = kinds.iter().flatten().find(|kind| !is_kind(kind)) {
            let known = EventKind::ALL.map(EventKind::name).join(", ");
            return Err(bad(format!("{unknown:?} is no event: there are {known}")));
        }
        if let Some(url) = &url {
            target::check(url, self.reach).await.map_err(|error| match error {
                NoTarget::Private(_) => ServiceError::NotPublic { why: error.to_string() },
                _ => bad(error.to_string()),
            })?;
        }
        let forgets = is_enabled == Some(true) || url.is_some();
        Ok(WebhookRecord {
            name: name.unwrap_or(before.name),
            url: url.unwrap_or(before.url),
            is_enabled: is_enabled.unwrap_or(before.is_enabled),
            kinds: kinds.unwrap_or(before.kinds),
            secret: secret.unwrap_or(before.secret),
            failing_since_ms: before.failing_since_ms.filter(|_| !forgets),
            why: before.why.filter(|_| !forgets),
            ..before
        })
    }
}

fn bad(why: String) -> ServiceError {
    ServiceError::BadWebhook { why }
}

/// Of one key.
const WEBHOOKS_MAX: usize = 20;
const NAME_MAX: usize = 128;
const SECRET_BYTES_MAX: usize = 256;
