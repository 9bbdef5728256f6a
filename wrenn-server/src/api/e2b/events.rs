//! What has happened to sandboxes.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::Value;
use wrenn_core::SandboxId;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::sandboxes::bare;
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::store::records::{EventRecord, EventsOf, Order};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventBody {
    version: &'static str,
    id: String,
    r#type: String,
    event_data: Option<Value>,
    sandbox_id: String,
    sandbox_build_id: String,
    sandbox_execution_id: String,
    sandbox_team_id: String,
    sandbox_template_id: String,
    timestamp: String,
}

pub(super) async fn of_all(
    State(context): State<Context>,
    Owner(owner): Owner,
    query: Pairs,
) -> Result<Json<Vec<EventBody>>, Refused> {
    list(&context, &owner, None, &query).await
}

pub(super) async fn of_one(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    query: Pairs,
) -> Result<Json<Vec<EventBody>>, Refused> {
    let found = context.sandboxes.find(&owner, bare(&id)).await?;
    list(&context, &owner, Some(&found.record.id), &query).await
}

async fn list(
    context: &Context,
    owner: &str,
    sandbox: Option<&SandboxId>,
    query: &Pairs,
) -> Result<Json<Vec<EventBody>>, Refused> {
    let order = match query.text("orderAsc") {
        None | Some("false") => Order::NewestFirst,
        Some("true") => Order::OldestFirst,
        Some(other) => return Err(Refused::bad_request(format!("orderAsc is {other:?}: it is `true` or `false`"))),
    };
    let skipped = query.number("offset", 0, 0..=u32::MAX)?;
    let len_max = query.number("limit", LISTED, 0..=LISTED_MAX)?;
    let of = sandbox.map_or(EventsOf::Sandboxes, EventsOf::Sandbox);
    let events = context.sandboxes.events().list(owner, of, order, skipped, len_max).await?;
    Ok(Json(events.into_iter().map(EventBody::from).collect()))
}

impl From<EventRecord> for EventBody {
    fn from(event: EventRecord) -> Self {
        let sandbox = event.subject.sandbox().map(ToString::to_string).unwrap_or_default();
        Self {
            version: "v1",
            id: event.id,
            r#type: format!("sandbox.lifecycle.{}", event.kind),
            event_data: event.why.map(|why| serde_json::json!({ "reason": why })),
            sandbox_build_id: event.template.clone(),
            sandbox_execution_id: sandbox.clone(),
            sandbox_id: sandbox,
            sandbox_team_id: event.owner,
            sandbox_template_id: event.template,
            timestamp: rfc3339(of_ms(event.at_ms)),
        }
    }
}

const LISTED: u32 = 10;
const LISTED_MAX: u32 = 100;
