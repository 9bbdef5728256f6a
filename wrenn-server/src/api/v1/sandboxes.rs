//! Sandboxes: made, listed, paused, resumed, forked and ended.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::{ErrorBody, Refused};
use crate::api::v1::body::Body;
use crate::api::v1::network::NetworkBody;
use crate::api::v1::owner::Owner;
use crate::service::error::ServiceError;
use crate::service::sandboxes::{Found, Wanted};
use crate::store::records::{Asked, By, Order, Page, Status, TimeoutFrom};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    #[serde(default = "base")]
    template: String,
    vcpus: Option<u32>,
    memory_mb: Option<u32>,
    #[serde(default = "five_minutes")]
    timeout_sec: u32,
    /// Whether it is paused, and not destroyed, when it was not used for so long.
    #[serde(default)]
    auto_pause: bool,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    /// The client's own notes on it.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Whether a request to one of its ports resumes it.
    #[serde(default)]
    auto_resume: bool,
    #[serde(default)]
    network: NetworkBody,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fork {
    #[serde(default = "one")]
    count: usize,
}

/// A sandbox as clients see it.
#[derive(Debug, Serialize)]
pub(super) struct SandboxBody {
    id: String,
    status: &'static str,
    /// Why it no longer runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    template: String,
    vcpus: u32,
    memory_mb: u32,
    timeout_sec: u32,
    auto_pause: bool,
    auto_resume: bool,
    labels: BTreeMap<String, String>,
    network: NetworkBody,
    created_at: String,
    started_at: String,
    last_active_at: Option<String>,
    last_updated: String,
}

/// A child of a fork, or why there is none.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Child {
    Sandbox(SandboxBody),
    Error(ErrorBody),
}

pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(body): Body<Create>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    if body.timeout_sec == 0 {
        return Err(Refused::bad_request("timeout_sec is 0: give it at least 1 second"));
    }
    let wanted = Wanted {
        template: body.template,
        vcpus: body.vcpus,
        memory_mib: body.memory_mb,
        timeout_sec: body.timeout_sec,
        pauses_at_timeout: body.auto_pause,
        envs: body.envs.into_iter().collect(),
        asked: Asked {
            labels: body.labels,
            timeout_from: TimeoutFrom::LastUse,
            wakes: body.auto_resume,
            network: body.network.into(),
            disk_mib: 0,
        },
    };
    let found = context.sandboxes.create(&owner, wanted, None).await?;
    Ok((StatusCode::CREATED, Json(found.into())))
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
) -> Result<Json<Vec<SandboxBody>>, Refused> {
    let (by, order) = (By::Created, Order::NewestFirst);
    let page = Page { owner: &owner, statuses: &Status::ALL, by, order, after: None, len_max: LISTED_MAX };
    let found = context.sandboxes.page(&page).await?;
    Ok(Json(found.into_iter().map(Into::into).collect()))
}

pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<Json<SandboxBody>, Refused> {
    Ok(Json(context.sandboxes.find(&owner, &id).await?.into()))
}

pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    context.sandboxes.delete(&owner, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<Json<SandboxBody>, Refused> {
    Ok(Json(context.sandboxes.pause(&owner, &id).await?.into()))
}

pub(super) async fn resume(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<Json<SandboxBody>, Refused> {
    Ok(Json(context.sandboxes.resume(&owner, &id).await?.into()))
}

pub(super) async fn ping(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    let sandbox = context.sandboxes.running(&owner, &id, "be pinged").await?;
    sandbox.ping().await.map_err(|error| Refused::from(ServiceError::from(error)))?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn fork(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Fork { count }): Body<Fork>,
) -> Result<(StatusCode, Json<Vec<Child>>), Refused> {
    if !(1..=CHILDREN_MAX).contains(&count) {
        return Err(Refused::bad_request(format!("count is {count}: 1 to {CHILDREN_MAX} children can be had at once")));
    }
    let children = context.sandboxes.fork(&owner, &id, count, None).await?;
    let children = children.into_iter().map(|child| match child {
        Ok(found) => Child::Sandbox(found.into()),
        Err(error) => Child::Error(Refused::from(error).into_body()),
    });
    Ok((StatusCode::CREATED, Json(children.collect())))
}

impl From<Found> for SandboxBody {
    fn from(Found { record, last_active_at, .. }: Found) -> Self {
        Self {
            id: record.id.to_string(),
            status: record.status.name(),
            reason: record.why,
            template: record.template,
            vcpus: record.vcpus,
            memory_mb: record.memory_mib,
            timeout_sec: record.timeout_sec,
            auto_pause: record.pauses_at_timeout,
            auto_resume: record.asked.wakes,
            labels: record.asked.labels,
            network: record.asked.network.into(),
            created_at: rfc3339(of_ms(record.created_at_ms)),
            started_at: rfc3339(of_ms(record.started_at_ms)),
            last_active_at: last_active_at.map(|at| rfc3339(at.into())),
            last_updated: rfc3339(of_ms(record.updated_at_ms)),
        }
    }
}

fn base() -> String {
    "base".to_owned()
}

fn five_minutes() -> u32 {
    300
}

fn one() -> usize {
    1
}

const CHILDREN_MAX: usize = 100;
const LISTED_MAX: u32 = 10_000;
