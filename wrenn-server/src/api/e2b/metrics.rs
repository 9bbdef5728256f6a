//! How much sandboxes use of their machines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use time::OffsetDateTime;
use wrenn_core::GuestMetrics;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::sandboxes::{bare, there};
use crate::api::state::Context;
use crate::api::time::rfc3339;
use crate::service::error::ServiceError;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MetricBody {
    timestamp: String,
    timestamp_unix: i64,
    cpu_count: u32,
    cpu_used_pct: f64,
    mem_used: u64,
    mem_total: u64,
    mem_cache: u64,
    disk_used: u64,
    disk_total: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct MetricsBody {
    sandboxes: BTreeMap<String, MetricBody>,
}

/// What was measured of one, also right now, between two times.
pub(super) async fn of_one(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    query: Pairs,
) -> Result<Json<Vec<MetricBody>>, Refused> {
    let (start, end) = (query.integer("start")?, query.integer("end")?);
    there(&context, &owner, &id).await?;
    let measured = context.sandboxes.metrics(&owner, bare(&id)).await?;
    let is_between = |metric: &MetricBody| {
        start.is_none_or(|start| metric.timestamp_unix >= start) && end.is_none_or(|end| metric.timestamp_unix <= end)
    };
    Ok(Json(measured.iter().map(MetricBody::from).filter(is_between).collect()))
}

/// What each of some uses now.
pub(super) async fn of_many(
    State(context): State<Context>,
    Owner(owner): Owner,
    query: Pairs,
) -> Result<Json<MetricsBody>, Refused> {
    let ids = query.list("sandbox_ids");
    let has_twice = ids.iter().collect::<BTreeSet<_>>().len() < ids.len();
    if ids.len() > IDS_MAX || has_twice {
        return Err(Refused::bad_request(format!("sandbox_ids are {IDS_MAX} at most, each once")));
    }
    let mut sandboxes = BTreeMap::new();
    for id in ids {
        match context.sandboxes.metrics(&owner, bare(id)).await {
            Ok(measured) => {
                if let Some(last) = measured.last() {
                    sandboxes.insert(id.to_owned(), MetricBody::from(last));
                }
            }
            Err(ServiceError::NoSandbox { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(MetricsBody { sandboxes }))
}

impl From<&GuestMetrics> for MetricBody {
    fn from(metrics: &GuestMetrics) -> Self {
        let since = metrics.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            timestamp: rfc3339(OffsetDateTime::from(metrics.at)),
            timestamp_unix: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            cpu_count: metrics.processors,
            cpu_used_pct: metrics.processor_used_percent,
            mem_used: metrics.memory_used_bytes,
            mem_total: metrics.memory_total_bytes,
            mem_cache: metrics.memory_cache_bytes,
            disk_used: metrics.disk_used_bytes,
            disk_total: metrics.disk_total_bytes,
        }
    }
}

const IDS_MAX: usize = 100;
