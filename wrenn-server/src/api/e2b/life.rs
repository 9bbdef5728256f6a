//! Sandboxes are paused, resumed, forked, and given more time.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::e2b::answer::{ErrorBody, Refused};
use crate::api::e2b::body::Body;
use crate::api::e2b::network::NetworkBody;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::sandboxes::{SandboxBody, bare, seconds, there};
use crate::api::state::Context;
use crate::service::sandboxes::life::Was;
use crate::store::records::Status;

#[derive(Debug, Deserialize)]
pub(super) struct Pause {
    memory: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Connect {
    timeout: Option<i64>,
    memory: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Fork {
    timeout: Option<i64>,
    count: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Timeout {
    timeout: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Refresh {
    duration: Option<i64>,
}

/// A child of a fork, or why there is none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Child {
    Sandbox(SandboxBody),
    Error(ErrorBody),
}

pub(super) async fn pause(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Pause { memory }, _): Body<Pause>,
) -> Result<StatusCode, Refused> {
    let found = there(&context, &owner, &id).await?;
    with_memory(memory)?;
    if found.record.status == Status::Paused {
        return Err(Refused::conflict(format!("Sandbox '{id}' is already paused")));
    }
    context.sandboxes.pause(&owner, found.record.id.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Without a time-out the first generation of paths refuses.
pub(super) async fn connect_v1(
    state: State<Context>,
    owner: Owner,
    path: Path<String>,
    body: Body<Connect>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    if body.0.timeout.is_none() {
        return Err(Refused::bad_request("timeout is missing"));
    }
    connect_v2(state, owner, path, body).await
}

pub(super) async fn connect_v2(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Connect { timeout, memory }, _): Body<Connect>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    let timeout_sec = seconds("timeout", timeout, CONNECT_SEC)?;
    there(&context, &owner, &id).await?;
    with_memory(memory)?;
    let (found, was) = context.sandboxes.connect(&owner, bare(&id), timeout_sec).await?;
    let status = match was {
        Was::Running => StatusCode::OK,
        Was::Paused => StatusCode::CREATED,
    };
    Ok((status, Json(SandboxBody::new(&context, &found))))
}

/// For clients of old.
pub(super) async fn resume(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Connect { timeout, memory }, _): Body<Connect>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    let timeout_sec = seconds("timeout", timeout, RESUME_SEC)?;
    let found = there(&context, &owner, &id).await?;
    with_memory(memory)?;
    if found.record.status == Status::Running {
        return Err(Refused::conflict(format!("Sandbox '{id}' is already running")));
    }
    let (found, _) = context.sandboxes.connect(&owner, bare(&id), timeout_sec).await?;
    Ok((StatusCode::CREATED, Json(SandboxBody::new(&context, &found))))
}

pub(super) async fn fork(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Fork { timeout, count }, _): Body<Fork>,
) -> Result<(StatusCode, Json<Vec<Child>>), Refused> {
    let (timeout_sec, count) = (seconds("timeout", timeout, FORK_SEC)?, count.unwrap_or(1));
    if !(1..=CHILDREN_MAX).contains(&count) {
        return Err(Refused::bad_request(format!("count is {count}: it is 1 to {CHILDREN_MAX}")));
    }
    there(&context, &owner, &id).await?;
    let children = context.sandboxes.fork(&owner, bare(&id), count, Some(timeout_sec)).await?;
    let children = children.into_iter().map(|child| match child {
        Ok(found) => Child::Sandbox(SandboxBody::new(&context, &found)),
        Err(error) => Child::Error(Refused::from(error).into_body()),
    });
    Ok((StatusCode::CREATED, Json(children.collect())))
}

/// The end is so many seconds from now.
pub(super) async fn timeout(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Timeout { timeout }, _): Body<Timeout>,
) -> Result<StatusCode, Refused> {
    let wanted = timeout.ok_or_else(|| Refused::bad_request("timeout is missing"))?;
    there(&context, &owner, &id).await?;
    context.sandboxes.set_timeout(&owner, bare(&id), seconds("timeout", Some(wanted), 0)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The end is so many seconds from now, if it was to come sooner.
pub(super) async fn refresh(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Refresh { duration }, _): Body<Refresh>,
) -> Result<StatusCode, Refused> {
    let duration_sec = seconds("duration", duration, RESUME_SEC)?;
    if duration_sec > REFRESH_MAX_SEC {
        return Err(Refused::bad_request(format!("duration is {duration_sec}: it is {REFRESH_MAX_SEC} at most")));
    }
    there(&context, &owner, &id).await?;
    context.sandboxes.extend(&owner, bare(&id), duration_sec).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What it may reach from now on. What is left out is as if it had never been said.
pub(super) async fn network(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(body, _): Body<NetworkBody>,
) -> Result<StatusCode, Refused> {
    there(&context, &owner, &id).await?;
    context.sandboxes.set_network(&owner, bare(&id), body.wanted(None)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn with_memory(memory: Option<bool>) -> Result<(), Refused> {
    match memory {
        None | Some(true) => Ok(()),
        Some(false) => {
            let message = "wrenn keeps a sandbox's memory with its files, and does not start from the files alone yet";
            // A conflict says that it is paused already.
            Err(Refused::bad_request(message).code("snapshot_filesystem_only_disabled"))
        }
    }
}

const CONNECT_SEC: u32 = 300;
const RESUME_SEC: u32 = 15;
const FORK_SEC: u32 = 15;
const CHILDREN_MAX: usize = 100;
const REFRESH_MAX_SEC: u32 = 3600;
