//! Sandboxes: made, listed, paused, resumed, forked and ended.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::{ErrorBody, Refused};
use crate::api::v1::body::{Body, object};
use crate::api::v1::network::{NetworkBody, NewNetwork};
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SandboxPath;
use crate::api::v1::refusals::{BadInput, Failing, Missing};
use crate::api::v1::variables::Variables;
use crate::service::error::ServiceError;
use crate::service::sandboxes::{Found, Wanted};
use crate::store::records::{Asked, By, Order, Page, Status, TimeoutFrom};

/// A sandbox to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Create {
    /// An image, or a snapshot or a build of the key's, perhaps with a tag.
    #[serde(default = "base")]
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}(:[A-Za-z0-9._-]{1,128})?$", default = "base", example = "base")]
    template: String,
    /// Its virtual processors. A snapshot has its own, and takes no others.
    #[schema(minimum = 1, maximum = 32)]
    vcpus: Option<u32>,
    /// Its memory, in MiB. A snapshot has its own, and takes no other.
    #[schema(minimum = 128, maximum = 65536)]
    memory_mb: Option<u32>,
    /// After how many seconds without use it ends.
    #[serde(default = "five_minutes")]
    #[schema(minimum = 1, default = 300)]
    timeout_sec: u32,
    /// Whether it is paused, and not destroyed, when it was not used for so long.
    #[serde(default)]
    #[schema(default = false)]
    auto_pause: bool,
    /// Variables of the environment of all of its commands.
    #[serde(default)]
    envs: Variables,
    /// The client's own notes on it.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Whether a request to one of its ports resumes it.
    #[serde(default)]
    #[schema(default = false)]
    auto_resume: bool,
    /// What it may reach, and who may reach it.
    #[serde(default, deserialize_with = "object")]
    #[schema(value_type = NewNetwork)]
    network: NetworkBody,
}

/// How many children a fork makes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Fork {
    /// How many.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 100, default = 1)]
    count: usize,
}

/// A sandbox as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Sandbox)]
pub(super) struct SandboxBody {
    /// `sb` and 16 hex digits.
    #[schema(example = "sb0123456789abcdef")]
    id: String,
    status: StatusBody,
    /// Why it no longer runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What it was made from.
    #[schema(example = "base")]
    template: String,
    /// Its virtual processors.
    #[schema(example = 1)]
    vcpus: u32,
    /// Its memory, in MiB.
    #[schema(example = 512)]
    memory_mb: u32,
    /// After how many seconds without use it ends.
    #[schema(example = 300)]
    timeout_sec: u32,
    /// Whether it is paused at that end, and not destroyed.
    auto_pause: bool,
    /// Whether a request to one of its ports resumes it.
    auto_resume: bool,
    /// The client's own notes on it.
    labels: BTreeMap<String, String>,
    /// What it may reach, and who may reach it.
    network: NetworkBody,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// When it began to run, the last time.
    #[schema(format = DateTime)]
    started_at: String,
    /// When it was last used; null where it does not run.
    #[schema(format = DateTime)]
    last_active_at: Option<String>,
    /// When its status last changed.
    #[schema(format = DateTime)]
    last_updated: String,
}

/// Where a sandbox is in its life.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Status)]
enum StatusBody {
    /// It runs.
    Running,
    /// It is on disk, and `resume` has it run again.
    Paused,
    /// It was ended, or its time was over.
    Stopped,
    /// It ended otherwise, which `reason` tells.
    Error,
}

/// Which sandboxes are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Listing {
    /// Those of this status alone.
    status: Option<StatusBody>,
    /// How many at most.
    #[param(minimum = 1, maximum = 10000, default = 10000)]
    limit: Option<u32>,
    /// Where to go on: what `X-Next-Cursor` of an earlier answer says.
    #[param(pattern = "^[0-9]+-sb[0-9a-f]{16}$", example = "1700000000000-sb0123456789abcdef")]
    cursor: Option<String>,
}

/// The place of a sandbox in the list.
struct Cursor;

impl Cursor {
    fn of(last: &Found) -> Result<HeaderValue, Refused> {
        let text = format!("{}-{}", last.record.created_at_ms, last.record.id);
        HeaderValue::from_str(&text).map_err(|_| Refused::bad_request("the list has no place to go on from"))
    }

    fn parse(text: &str) -> Result<(i64, String), Refused> {
        let parsed = text.split_once('-').and_then(|(at_ms, id)| Some((at_ms.parse().ok()?, id.to_owned())));
        parsed.ok_or_else(|| Refused::bad_request("cursor is none that this server has given"))
    }
}

/// A child of a fork, or why there is none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "there are few errors, and each is sent at once")]
pub(super) enum Child {
    Sandbox(SandboxBody),
    Error(ErrorBody),
}

/// Makes a sandbox.
#[utoipa::path(
    post, path = "/v1/sandboxes", operation_id = "create_sandbox", tag = "sandboxes",
    request_body = Create,
    responses((status = 201, description = "It runs.", body = SandboxBody), Missing, Failing),
)]
pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(body): Body<Create>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    if body.timeout_sec == 0 {
        return Err(Refused::bad_request("timeout_sec is 0: give it at least 1 second"));
    }
    check_vcpus(body.vcpus)?;
    let wanted = Wanted {
        template: body.template,
        vcpus: body.vcpus,
        memory_mib: body.memory_mb,
        timeout_sec: body.timeout_sec,
        pauses_at_timeout: body.auto_pause,
        envs: body.envs.into_vec(),
        asked: Asked {
            labels: body.labels,
            timeout_from: TimeoutFrom::LastUse,
            wakes: body.auto_resume,
            network: body.network.try_into()?,
            disk_mib: 0,
            built_as: None,
        },
    };
    let found = context.sandboxes.create(&owner, wanted, None).await?;
    Ok((StatusCode::CREATED, Json(found.into())))
}

/// Lists the sandboxes of the key, also those that have ended.
///
/// Where there are more than `limit`, the header `X-Next-Cursor` has the `cursor` of the next ones.
#[utoipa::path(
    get, path = "/v1/sandboxes", operation_id = "list_sandboxes", tag = "sandboxes",
    params(Listing),
    responses((status = 200, description = "The newest first.", body = Vec<SandboxBody>), BadInput),
)]
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<(HeaderMap, Json<Vec<SandboxBody>>), Refused> {
    let Query(Listing { status, limit, cursor }) =
        listing.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let len_max = limit.unwrap_or(LISTED_MAX);
    if !(1..=LISTED_MAX).contains(&len_max) {
        return Err(Refused::bad_request(format!("limit is {len_max}: it is 1 to {LISTED_MAX}")));
    }
    let after = cursor.as_deref().map(Cursor::parse).transpose()?;
    let statuses = status.map_or_else(|| Status::ALL.to_vec(), |status| vec![status.into()]);
    let (by, order) = (By::Created, Order::NewestFirst);
    let page = Page { owner: &owner, statuses: &statuses, by, order, after, len_max };
    let found = context.sandboxes.page(&page).await?;
    let mut headers = HeaderMap::new();
    let is_full = u32::try_from(found.len()).is_ok_and(|len| len == len_max);
    if let Some(last) = found.last().filter(|_| is_full) {
        headers.insert(HeaderName::from_static("x-next-cursor"), Cursor::of(last)?);
    }
    Ok((headers, Json(found.into_iter().map(Into::into).collect())))
}

/// Tells of a sandbox, also of one that has ended.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}", operation_id = "get_sandbox", tag = "sandboxes",
    params(SandboxPath),
    responses((status = 200, description = "The sandbox.", body = SandboxBody), Missing),
)]
pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
) -> Result<Json<SandboxBody>, Refused> {
    Ok(Json(context.sandboxes.find(&owner, &id).await?.into()))
}

/// Ends a sandbox, and removes all of it but its record. It wins against whatever is under way.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}", operation_id = "delete_sandbox", tag = "sandboxes",
    params(SandboxPath),
    responses((status = 204, description = "It has ended."), Missing, Failing),
)]
pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
) -> Result<StatusCode, Refused> {
    context.sandboxes.delete(&owner, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a sandbox: it goes to disk, with its processes.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/pause", operation_id = "pause_sandbox", tag = "sandboxes",
    params(SandboxPath),
    responses((status = 200, description = "It is paused.", body = SandboxBody), Missing, Failing),
)]
pub(super) async fn pause(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
) -> Result<Json<SandboxBody>, Refused> {
    Ok(Json(context.sandboxes.pause(&owner, &id).await?.into()))
}

/// Resumes a sandbox that is paused.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/resume", operation_id = "resume_sandbox", tag = "sandboxes",
    params(SandboxPath),
    responses((status = 200, description = "It runs.", body = SandboxBody), Missing, Failing),
)]
pub(super) async fn resume(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
) -> Result<Json<SandboxBody>, Refused> {
    Ok(Json(context.sandboxes.resume(&owner, &id).await?.into()))
}

/// Asks whether a sandbox is there, which counts as use.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/ping", operation_id = "ping_sandbox", tag = "sandboxes",
    params(SandboxPath),
    responses((status = 204, description = "It is there, and was used just now."), Missing, Failing),
)]
pub(super) async fn ping(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
) -> Result<StatusCode, Refused> {
    let sandbox = context.sandboxes.running(&owner, &id, "be pinged").await?;
    sandbox.ping().await.map_err(|error| Refused::from(ServiceError::from(error)))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Forks a sandbox that runs: its children go on from where it is, with its processes.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/fork", operation_id = "fork_sandbox", tag = "sandboxes",
    params(SandboxPath), request_body = Fork,
    responses((status = 201, description = "Each child, or why there is none.", body = Vec<Child>), Missing, Failing),
)]
pub(super) async fn fork(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
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

impl From<Status> for StatusBody {
    fn from(status: Status) -> Self {
        match status {
            Status::Running => Self::Running,
            Status::Paused => Self::Paused,
            Status::Stopped => Self::Stopped,
            Status::Error => Self::Error,
        }
    }
}

impl From<StatusBody> for Status {
    fn from(status: StatusBody) -> Self {
        match status {
            StatusBody::Running => Self::Running,
            StatusBody::Paused => Self::Paused,
            StatusBody::Stopped => Self::Stopped,
            StatusBody::Error => Self::Error,
        }
    }
}

impl From<Found> for SandboxBody {
    fn from(Found { record, last_active_at, .. }: Found) -> Self {
        let template = record.template_name().to_owned();
        Self {
            id: record.id.to_string(),
            status: record.status.into(),
            reason: record.why,
            template,
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

/// Refuses a number that no machine has before anybody waits for it.
fn check_vcpus(wanted: Option<u32>) -> Result<(), Refused> {
    match wanted {
        Some(vcpus) if !(1..=VCPUS_MAX).contains(&vcpus) => {
            Err(Refused::bad_request(format!("vcpus is {vcpus}: ask for 1 to {VCPUS_MAX}")))
        }
        _ => Ok(()),
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

/// What the library takes.
const VCPUS_MAX: u32 = 32;
const CHILDREN_MAX: usize = 100;
const LISTED_MAX: u32 = 10_000;
