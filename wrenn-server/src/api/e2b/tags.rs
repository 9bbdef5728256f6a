//! Templates' tags.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::service::builds::build_id;
use crate::service::tags::{DEFAULT, Tagged, normalized};
use crate::store::records::TagRecord;

#[derive(Debug, Deserialize)]
pub(super) struct Assignment {
    target: String,
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Removal {
    name: String,
    tags: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct AssignedBody {
    tags: Vec<String>,
    #[serde(rename = "buildID")]
    build_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TagBody {
    tag: String,
    #[serde(rename = "buildID")]
    build_id: String,
    created_at: String,
}

#[derive(Debug, Serialize)]
pub(super) struct CountBody {
    total: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExistsBody {
    exists: bool,
    normalized_tag: String,
}

pub(super) async fn assign(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(Assignment { target, tags }, _): Body<Assignment>,
) -> Result<(StatusCode, Json<AssignedBody>), Refused> {
    let tagged = all_tagged(&target, &tags)?;
    let template = context.sandboxes.assign_tags(&owner, &target, &tagged).await?;
    let tags = tagged.into_iter().map(|tagged| tagged.tag).collect();
    Ok((StatusCode::CREATED, Json(AssignedBody { tags, build_id: build_id(&template) })))
}

pub(super) async fn remove(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(Removal { name, tags }, _): Body<Removal>,
) -> Result<StatusCode, Refused> {
    context.sandboxes.remove_tags(&owner, bare(&name), &all_tagged(&name, &tags)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(name): Path<String>,
) -> Result<Json<Vec<TagBody>>, Refused> {
    let tags = context.sandboxes.tags(&owner, bare(&name)).await?;
    Ok(Json(tags.into_iter().map(TagBody::from).collect()))
}

pub(super) async fn count(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(name): Path<String>,
) -> Result<Json<CountBody>, Refused> {
    Ok(Json(CountBody { total: context.sandboxes.tags(&owner, bare(&name)).await?.len() }))
}

pub(super) async fn exists(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(name): Path<String>,
    query: Pairs,
) -> Result<Json<ExistsBody>, Refused> {
    let asked = query.text("tag").unwrap_or_default();
    let normalized_tag = normalized(asked).ok_or_else(|| no_tag(asked))?;
    let tags = context.sandboxes.tags(&owner, bare(&name)).await?;
    let tagged = Tagged { name, tag: normalized_tag.clone() };
    let is_there = |tag: &str| tags.iter().any(|record| record.tag == tag);
    let exists = is_there(&normalized_tag) || tagged.is_implied() && is_there(DEFAULT);
    Ok(Json(ExistsBody { exists, normalized_tag }))
}

fn all_tagged(name: &str, tags: &[String]) -> Result<Vec<Tagged>, Refused> {
    if tags.is_empty() {
        return Err(Refused::bad_request("tags has none: name one at least"));
    }
    tags.iter().map(|tag| Tagged::of(bare(name), tag).ok_or_else(|| no_tag(tag))).collect()
}

pub(super) fn no_tag(tag: &str) -> Refused {
    Refused::bad_request(format!("{tag:?} is no tag: it has 1 to 128 letters, digits, dots, hyphens and underscores"))
}

/// A name without a tag.
pub(super) fn bare(name: &str) -> &str {
    name.split_once(':').map_or(name, |(name, _)| name)
}

impl From<TagRecord> for TagBody {
    fn from(record: TagRecord) -> Self {
        Self { tag: record.tag, build_id: build_id(&record.template), created_at: rfc3339(of_ms(record.created_at_ms)) }
    }
}
