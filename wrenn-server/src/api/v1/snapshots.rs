//! Snapshots, which sandboxes are made from, beside the images.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use wrenn_core::Template;

use crate::api::state::Context;
use crate::api::time::rfc3339;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    sandbox_id: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Filter {
    r#type: Option<String>,
}

/// A template as clients see it.
#[derive(Debug, Serialize)]
pub(super) struct TemplateBody {
    name: String,
    r#type: &'static str,
    /// Of an image, each sandbox chooses its own.
    vcpus: Option<u32>,
    memory_mb: Option<u32>,
    created_at: Option<String>,
}

pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(Snapshot { sandbox_id, name }): Body<Snapshot>,
) -> Result<(StatusCode, Json<TemplateBody>), Refused> {
    let template = context.sandboxes.snapshot(&owner, &sandbox_id, name).await?;
    Ok((StatusCode::CREATED, Json(template.into())))
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    Query(Filter { r#type }): Query<Filter>,
) -> Result<Json<Vec<TemplateBody>>, Refused> {
    if let Some(unknown) = r#type.as_deref().filter(|kind| ![IMAGE, SNAPSHOT].contains(kind)) {
        return Err(Refused::bad_request(format!("type is {unknown:?}: it is `{IMAGE}` or `{SNAPSHOT}`")));
    }
    let all = context.sandboxes.templates(&owner).await?.into_iter().map(TemplateBody::from);
    Ok(Json(all.filter(|template| r#type.as_deref().is_none_or(|kind| kind == template.r#type)).collect()))
}

pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(name): Path<String>,
) -> Result<StatusCode, Refused> {
    context.sandboxes.remove_snapshot(&owner, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<Template> for TemplateBody {
    fn from(template: Template) -> Self {
        Self {
            name: template.name().to_string(),
            r#type: if template.is_snapshot() { SNAPSHOT } else { IMAGE },
            vcpus: template.vcpus(),
            memory_mb: template.memory_mib(),
            created_at: template.created_at().map(|at| rfc3339(at.into())),
        }
    }
}

const IMAGE: &str = "image";
const SNAPSHOT: &str = "snapshot";
