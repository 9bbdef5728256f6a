//! A sandbox's log: what has happened to it.

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
pub(super) struct LogsBody {
    logs: Vec<LogBody>,
}

#[derive(Debug, Serialize)]
struct LogBody {
    timestamp: String,
    message: String,
    level: &'static str,
    fields: Value,
}

/// As clients of old have it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OldLogsBody {
    logs: Vec<LineBody>,
    log_entries: Vec<LogBody>,
}

#[derive(Debug, Serialize)]
struct LineBody {
    timestamp: String,
    line: String,
}

pub(super) async fn v2(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    query: Pairs,
) -> Result<Json<LogsBody>, Refused> {
    let order = match query.value("direction") {
        None | Some("forward") => Order::OldestFirst,
        Some("backward") => Order::NewestFirst,
        Some(other) => return Err(Refused::bad_request(format!("direction is {other:?}: `forward` or `backward`"))),
    };
    if let Some(other) = query.value("level").filter(|level| !LEVELS.contains(level)) {
        return Err(Refused::bad_request(format!("level is {other:?}: one of {LEVELS:?}")));
    }
    let (cursor, search) = (query.integer("cursor")?, query.text("search"));
    let limit = query.number("limit", LOGS_MAX, 0..=LOGS_MAX)?;
    let events = events(&context, &owner, &id, order).await?;
    let fits = |event: &EventRecord| {
        let is_beyond = cursor.is_none_or(|cursor| match order {
            Order::OldestFirst => event.at_ms >= cursor,
            Order::NewestFirst => event.at_ms <= cursor,
        });
        is_beyond && search.is_none_or(|search| message(event).contains(search))
    };
    // All that is told is of the level `info`.
    let is_told = !matches!(query.value("level"), Some("warn" | "error"));
    let logs = events.iter().filter(|event| is_told && fits(event)).map(LogBody::from);
    Ok(Json(LogsBody { logs: logs.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect() }))
}

pub(super) async fn v1(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    query: Pairs,
) -> Result<Json<OldLogsBody>, Refused> {
    let start = query.integer("start")?.unwrap_or(0);
    // This route's own limit has no bound.
    let limit = query.number("limit", LOGS_MAX, 0..=u32::MAX)?.min(LOGS_MAX);
    let mut events = events(&context, &owner, &id, Order::OldestFirst).await?;
    events.retain(|event| event.at_ms >= start);
    events.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let line = |event: &EventRecord| LineBody { timestamp: rfc3339(of_ms(event.at_ms)), line: message(event) };
    Ok(Json(OldLogsBody {
        logs: events.iter().map(line).collect(),
        log_entries: events.iter().map(LogBody::from).collect(),
    }))
}

async fn events(context: &Context, owner: &str, id: &str, order: Order) -> Result<Vec<EventRecord>, Refused> {
    let found = context.sandboxes.find(owner, bare(id)).await?;
    Ok(context.sandboxes.events().list(owner, EventsOf::Sandbox(&found.record.id), order, 0, LOGS_MAX).await?)
}

fn message(event: &EventRecord) -> String {
    match &event.why {
        Some(why) => format!("Sandbox {}: {why}", event.kind),
        None => format!("Sandbox {}", event.kind),
    }
}

impl From<&EventRecord> for LogBody {
    fn from(event: &EventRecord) -> Self {
        Self {
            timestamp: rfc3339(of_ms(event.at_ms)),
            message: message(event),
            level: "info",
            fields: serde_json::json!({ "event": event.kind, "sandboxID": event.subject.sandbox().map(SandboxId::as_str) }),
        }
    }
}

const LOGS_MAX: u32 = 1000;
const LEVELS: [&str; 4] = ["debug", "info", "warn", "error"];
