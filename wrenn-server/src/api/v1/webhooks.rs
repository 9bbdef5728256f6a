//! Webhooks: where events are sent as they happen.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::events::EventType;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::WebhookPath;
use crate::api::v1::refusals::{Missing, NotPublic, TooMany};
use crate::service::webhooks::Wanted;
use crate::store::records::{Hidden, WebhookRecord};

/// A webhook to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewWebhook {
    /// Where events are sent, by `POST`.
    #[schema(pattern = "^https?://[^/?#@]+", max_length = 2048, example = "https://example.com/hook")]
    url: String,
    /// What deliveries are signed with. It is not shown again.
    #[schema(value_type = String, min_length = 1, max_length = 256, write_only)]
    secret: Hidden,
    /// What it is called, for people.
    #[schema(max_length = 128)]
    name: Option<String>,
    /// Which events are sent, by their types; all where it is left out or empty.
    #[schema(value_type = Option<Vec<EventType>>)]
    events: Option<Vec<String>>,
    /// Whether they are sent.
    enabled: Option<bool>,
}

/// What is to be another one of a webhook.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WebhookChange {
    /// Where events are sent, by `POST`.
    #[schema(pattern = "^https?://[^/?#@]+", max_length = 2048)]
    url: Option<String>,
    /// What deliveries are signed with.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 256, write_only)]
    secret: Option<Hidden>,
    /// What it is called, for people.
    #[schema(max_length = 128)]
    name: Option<String>,
    /// Which events are sent, by their types; all where it is empty.
    #[schema(value_type = Option<Vec<EventType>>)]
    events: Option<Vec<String>>,
    /// Whether they are sent. `true` forgets what has failed before.
    enabled: Option<bool>,
}

/// A webhook as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(super) struct WebhookBody {
    /// `wh` and 32 hex digits.
    id: String,
    /// Where events are sent.
    url: String,
    /// What it is called.
    name: String,
    /// Which events are sent; all where it is empty.
    #[schema(value_type = Vec<EventType>)]
    events: Vec<String>,
    /// Whether they are sent. A webhook that fails for a day is disabled.
    enabled: bool,
    /// Since when each delivery has failed.
    #[schema(format = DateTime)]
    failing_since: Option<String>,
    /// Why the last delivery has failed, or why it was disabled.
    reason: Option<String>,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
}

/// Makes a webhook: events of the key's sandboxes are sent to it, each signed in `X-Wrenn-Signature`.
#[utoipa::path(
    post, path = "/v1/webhooks", operation_id = "create_webhook", tag = "events",
    request_body = NewWebhook,
    responses((status = 201, description = "It is there.", body = WebhookBody), NotPublic, TooMany),
)]
pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(NewWebhook { url, secret, name, events, enabled }): Body<NewWebhook>,
) -> Result<(StatusCode, Json<WebhookBody>), Refused> {
    let wanted = Wanted { name, url: Some(url), is_enabled: enabled, kinds: events, secret: Some(secret) };
    Ok((StatusCode::CREATED, Json(context.webhooks.add(&owner, wanted).await?.into())))
}

/// Lists the key's webhooks.
#[utoipa::path(
    get, path = "/v1/webhooks", operation_id = "list_webhooks", tag = "events",
    responses((status = 200, description = "The webhooks, the oldest first.", body = Vec<WebhookBody>)),
)]
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
) -> Result<Json<Vec<WebhookBody>>, Refused> {
    Ok(Json(context.webhooks.list(&owner).await?.into_iter().map(WebhookBody::from).collect()))
}

/// Gives a webhook.
#[utoipa::path(
    get, path = "/v1/webhooks/{id}", operation_id = "get_webhook", tag = "events",
    params(WebhookPath),
    responses((status = 200, description = "The webhook.", body = WebhookBody), Missing),
)]
pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    WebhookPath { id }: WebhookPath,
) -> Result<Json<WebhookBody>, Refused> {
    Ok(Json(context.webhooks.find(&owner, &id).await?.into()))
}

/// Changes a webhook.
#[utoipa::path(
    patch, path = "/v1/webhooks/{id}", operation_id = "change_webhook", tag = "events",
    params(WebhookPath), request_body = WebhookChange,
    responses((status = 200, description = "The webhook, as it is now.", body = WebhookBody), Missing, NotPublic),
)]
pub(super) async fn change(
    State(context): State<Context>,
    Owner(owner): Owner,
    WebhookPath { id }: WebhookPath,
    Body(WebhookChange { url, secret, name, events, enabled }): Body<WebhookChange>,
) -> Result<Json<WebhookBody>, Refused> {
    let wanted = Wanted { name, url, is_enabled: enabled, kinds: events, secret };
    Ok(Json(context.webhooks.change(&owner, &id, wanted).await?.into()))
}

/// Removes a webhook.
#[utoipa::path(
    delete, path = "/v1/webhooks/{id}", operation_id = "delete_webhook", tag = "events",
    params(WebhookPath),
    responses((status = 204, description = "It is gone."), Missing),
)]
pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    WebhookPath { id }: WebhookPath,
) -> Result<StatusCode, Refused> {
    context.webhooks.remove(&owner, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<WebhookRecord> for WebhookBody {
    fn from(webhook: WebhookRecord) -> Self {
        Self {
            id: webhook.id,
            url: webhook.url,
            name: webhook.name,
            events: webhook.kinds,
            enabled: webhook.is_enabled,
            failing_since: webhook.failing_since_ms.map(|at_ms| rfc3339(of_ms(at_ms))),
            reason: webhook.why,
            created_at: rfc3339(of_ms(webhook.created_at_ms)),
        }
    }
}
