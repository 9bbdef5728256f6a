//! Snapshots of sandboxes, which are templates.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::sandboxes::{bare, template_name, there};
use crate::api::state::Context;
use crate::service::templates::Former;

#[derive(Debug, Deserialize)]
pub(super) struct NewSnapshot {
    name: Option<String>,
    memory: Option<bool>,
}

#[derive(Debug, Serialize)]
pub(super) struct SnapshotBody {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
    names: Vec<String>,
}

pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(NewSnapshot { name, memory }, _): Body<NewSnapshot>,
) -> Result<(StatusCode, Json<SnapshotBody>), Refused> {
    there(&context, &owner, &id).await?;
    if memory == Some(false) {
        let message = "wrenn keeps a snapshot's memory with its files, and makes none of the files alone yet";
        return Err(Refused::bad_request(message).code("snapshot_filesystem_only_disabled"));
    }
    let name = match name.as_deref().map(template_name).filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => format!("snap{:016x}", rand::random::<u64>()),
    };
    let template = context.sandboxes.snapshot(&owner, bare(&id), name, Former::Kept).await?;
    Ok((StatusCode::CREATED, Json(SnapshotBody::new(template.name().as_str()))))
}

/// An owner's, by name; or those that were made of one sandbox.
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    query: Pairs,
) -> Result<(HeaderMap, Json<Vec<SnapshotBody>>), Refused> {
    let (of, name) = (query.text("sandboxID").map(bare), query.text("name").map(template_name));
    let mut names: Vec<String> = context.sandboxes.snapshots(&owner, of).await?;
    names.retain(|its| name.is_none_or(|name| name == its));
    let (headers, names) = query.page()?.of(names, |name| name);
    Ok((headers, Json(names.iter().map(|name| SnapshotBody::new(name)).collect())))
}

impl SnapshotBody {
    fn new(name: &str) -> Self {
        Self { snapshot_id: name.to_owned(), names: vec![name.to_owned()] }
    }
}
