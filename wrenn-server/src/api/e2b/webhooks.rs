//! Webhooks.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::owner::Owner;
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::service::webhooks::Wanted;
use crate::store::records::{Hidden, WebhookRecord};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WantedBody {
    name: Option<String>,
    url: Option<String>,
    enabled: Option<bool>,
    events: Option<Vec<String>>,
    signature_secret: Option<Hidden>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WebhookBody {
    id: String,
    team_id: String,
    name: String,
    created_at: String,
    enabled: bool,
    url: String,
    events: Vec<String>,
    /// Why the last delivery has failed, which is wrenn's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(wanted, _): Body<WantedBody>,
) -> Result<(StatusCode, Json<WebhookBody>), Refused> {
    let webhook = context.webhooks.add(&owner, wanted.try_into()?).await?;
    Ok((StatusCode::CREATED, Json(webhook.into())))
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
) -> Result<Json<Vec<WebhookBody>>, Refused> {
    Ok(Json(context.webhooks.list(&owner).await?.into_iter().map(WebhookBody::from).collect()))
}

pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<Json<WebhookBody>, Refused> {
    Ok(Json(context.webhooks.find(&owner, &id).await?.into()))
}

pub(super) async fn patch(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(wanted, _): Body<WantedBody>,
) -> Result<Json<WebhookBody>, Refused> {
    Ok(Json(context.webhooks.change(&owner, &id, wanted.try_into()?).await?.into()))
}

/// E2B's answer to that is 200, and not 204.
pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    context.webhooks.remove(&owner, &id).await?;
    Ok(StatusCode::OK)
}

impl TryFrom<WantedBody> for Wanted {
    type Error = Refused;

    fn try_from(body: WantedBody) -> Result<Self, Refused> {
        let kind = |event: String| match event.strip_prefix(PREFIX) {
            Some(kind) => Ok(kind.to_owned()),
            None => Err(Refused::bad_request(format!("{event:?} is no event: each begins with {PREFIX}"))),
        };
        Ok(Self {
            name: body.name,
            url: body.url,
            is_enabled: body.enabled,
            kinds: body.events.map(|events| events.into_iter().map(kind).collect()).transpose()?,
            secret: body.signature_secret,
        })
    }
}

impl From<WebhookRecord> for WebhookBody {
    fn from(webhook: WebhookRecord) -> Self {
        Self {
            id: webhook.id,
            team_id: webhook.owner,
            name: webhook.name,
            created_at: rfc3339(of_ms(webhook.created_at_ms)),
            enabled: webhook.is_enabled,
            url: webhook.url,
            events: webhook.kinds.iter().map(|kind| format!("{PREFIX}{kind}")).collect(),
            reason: webhook.why,
        }
    }
}

const PREFIX: &str = "sandbox.lifecycle.";
