//! What has happened to sandboxes and builds: listed, and told as it happens.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use futures::stream::unfold;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use wrenn_core::SandboxId;

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::Refused;
use crate::api::v1::owner::Owner;
use crate::api::v1::refusals::{BadInput, Missing};
use crate::service::events::follow::Told;
use crate::store::records::{EventRecord, EventsOf, Order};

/// Which events are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    /// Those of this sandbox alone.
    #[param(pattern = "^sb[0-9a-f]{16}$")]
    sandbox_id: Option<String>,
    /// How many are skipped; none where it is left out.
    offset: Option<u32>,
    /// How many are listed at most; 100 where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Which come first; the newest where it is left out.
    #[param(inline)]
    order: Option<OrderBody>,
}

/// Which come first.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Order)]
enum OrderBody {
    /// The oldest.
    Asc,
    /// The newest.
    Desc,
}

/// What can happen to a sandbox, or to a build, by the names of `EventKind`.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "records have them as texts; this is what the document says of them")]
pub(super) enum EventType {
    /// A sandbox was made.
    Created,
    /// It was paused.
    Paused,
    /// It runs again.
    Resumed,
    /// Its time-out or its network is another one.
    Updated,
    /// A snapshot was made of it.
    Checkpointed,
    /// It has ended.
    Killed,
    /// A build has begun.
    BuildStarted,
    /// It has made its template.
    BuildSucceeded,
    /// It has failed, or was cancelled.
    BuildFailed,
}

/// Something that has happened to a sandbox, or to a build.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventBody {
    /// A name that no other event has.
    id: String,
    /// What has happened.
    #[schema(value_type = EventType, example = "paused")]
    r#type: String,
    /// The sandbox; null for a build.
    #[schema(example = "sb0123456789abcdef")]
    sandbox_id: Option<String>,
    /// The build; null for a sandbox.
    build_id: Option<String>,
    /// What the sandbox was made from, or the name that is built.
    #[schema(example = "base")]
    template: String,
    /// Why, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When.
    #[schema(format = DateTime)]
    at: String,
}

/// Lists what has happened to the key's sandboxes and builds.
#[utoipa::path(
    get, path = "/v1/events", operation_id = "list_events", tag = "events",
    params(Filter),
    responses((status = 200, description = "The events that are kept.", body = Vec<EventBody>), BadInput),
)]
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Vec<EventBody>>, Refused> {
    let Query(filter) = filter.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let order = match filter.order {
        Some(OrderBody::Asc) => Order::OldestFirst,
        Some(OrderBody::Desc) | None => Order::NewestFirst,
    };
    let len_max = filter.limit.unwrap_or(LISTED);
    if !(1..=LISTED_MAX).contains(&len_max) {
        return Err(Refused::bad_request(format!("limit is {len_max}: it is 1 to {LISTED_MAX}")));
    }
    let sandbox: Option<SandboxId> = filter
        .sandbox_id
        .map(|id| id.parse())
        .transpose()
        .map_err(|_| Refused::bad_request("sandbox_id is no sandbox's: it is `sb` and 16 hex digits"))?;
    let of = sandbox.as_ref().map_or(EventsOf::Everything, EventsOf::Sandbox);
    let skipped = filter.offset.unwrap_or_default();
    let events = context.sandboxes.events().list(&owner, of, order, skipped, len_max).await?;
    Ok(Json(events.into_iter().map(EventBody::from).collect()))
}

/// Tells what happens to the key's sandboxes and builds, as server-sent events: from now on, or after the event that `Last-Event-ID`
/// names.
///
/// Each one has its `id`, its type as `event`, and an Event as `data`. A listener that does not keep up is sent `too_slow`,
/// and let go.
#[utoipa::path(
    get, path = "/v1/events/stream", operation_id = "stream_events", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The last event that the client has.")),
    responses((status = 200, description = "The events.", body = String, content_type = "text/event-stream"), Missing),
)]
pub(super) async fn stream(
    State(context): State<Context>,
    Owner(owner): Owner,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>, Refused> {
    let after = headers.get("last-event-id").map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let followed = context.sandboxes.events().follow(&owner, after.as_deref().filter(|id| !id.is_empty())).await?;
    let events = unfold(Some(followed), |followed| async move {
        let mut followed = followed?;
        match followed.next().await {
            Told::Event(record) => Some((Ok(of_record(record)), Some(followed))),
            Told::TooSlow => Some((Ok(too_slow()), None)),
            Told::Over => None,
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn of_record(record: EventRecord) -> Event {
    let body = EventBody::from(record);
    // It has maps with keys that are texts alone.
    let data = serde_json::to_string(&body).unwrap_or_default();
    Event::default().id(body.id).event(body.r#type).data(data)
}

fn too_slow() -> Event {
    let message = "the client does not read as fast as things happen: listen again with Last-Event-ID";
    let data = json!({"error": {"code": "too_slow", "message": message}});
    Event::default().event("too_slow").data(data.to_string())
}

impl From<EventRecord> for EventBody {
    fn from(event: EventRecord) -> Self {
        Self {
            id: event.id,
            r#type: event.kind,
            sandbox_id: event.subject.sandbox().map(ToString::to_string),
            build_id: event.subject.build().map(str::to_owned),
            template: event.template,
            reason: event.why,
            at: rfc3339(of_ms(event.at_ms)),
        }
    }
}

const LISTED: u32 = 100;
const LISTED_MAX: u32 = 1000;
/// Proxies close what says nothing for a minute or less.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema as _;

    use super::*;
    use crate::service::events::EventKind;

    #[test]
    fn the_document_has_each_kind_of_event() {
        let schema = serde_json::to_value(EventType::schema()).expect("JSON");
        assert_eq!(schema["enum"], json!(EventKind::ALL.map(EventKind::name)));
    }
}
