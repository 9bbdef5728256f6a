//! Snapshots, which sandboxes are made from, beside the images.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use wrenn_core::Template;

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SnapshotPath;
use crate::api::v1::refusals::{BadInput, Failing, Missing};
use crate::service::sandboxes::built::Built;
use crate::service::templates::Former;

/// A snapshot to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    /// Of which sandbox, which has to run and goes on.
    #[schema(pattern = "^sb[0-9a-f]{16}$", example = "sb0123456789abcdef")]
    sandbox_id: String,
    /// What it is to be called.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$", example = "warm")]
    name: String,
}

/// How a snapshot is made.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Making {
    /// Whether it replaces the key's own snapshot of that name, if there is one.
    #[serde(default)]
    #[param(default = false)]
    overwrite: bool,
}

/// Which templates are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Those of this kind alone.
    r#type: Option<TemplateKind>,
}

/// A template as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Template)]
pub(super) struct TemplateBody {
    /// Its name, which `POST /v1/sandboxes` takes.
    #[schema(example = "warm")]
    name: String,
    r#type: TemplateKind,
    /// The virtual processors of its sandboxes; null for an image, of which each sandbox chooses its own.
    vcpus: Option<u32>,
    /// Their memory, in MiB; null for an image.
    memory_mb: Option<u32>,
    /// How much disk is kept for it, in bytes, also where other snapshots and sandboxes share that: of a build, for all that
    /// is there of its name. Null for an image.
    #[schema(example = 12_345_678)]
    size_bytes: Option<u64>,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: Option<String>,
}

/// What kind of template it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum TemplateKind {
    /// A disk, of which sandboxes boot. It is everybody's.
    Image,
    /// A sandbox that ran, which its sandboxes go on from. It is its key's.
    Snapshot,
    /// What was built under that name. It is its key's, too.
    Build,
}

/// Makes a snapshot of a sandbox that runs: a template for sandboxes of the same key. What it replaces is there until then.
#[utoipa::path(
    post, path = "/v1/snapshots", operation_id = "create_snapshot", tag = "snapshots",
    params(Making), request_body = Snapshot,
    responses((status = 201, description = "It is there.", body = TemplateBody), Missing, Failing),
)]
pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    making: Result<Query<Making>, QueryRejection>,
    Body(Snapshot { sandbox_id, name }): Body<Snapshot>,
) -> Result<(StatusCode, Json<TemplateBody>), Refused> {
    let Query(Making { overwrite }) = making.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let former = if overwrite { Former::Replaced } else { Former::Kept };
    let template = context.sandboxes.snapshot(&owner, &sandbox_id, name, former).await?;
    Ok((StatusCode::CREATED, Json(TemplateBody::of(&context, template).await?)))
}

/// Lists what sandboxes can be made from.
#[utoipa::path(
    get, path = "/v1/snapshots", operation_id = "list_snapshots", tag = "snapshots",
    params(Filter),
    responses((status = 200, description = "The images, and the key's snapshots and builds.", body = Vec<TemplateBody>), BadInput, Failing),
)]
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Json<Vec<TemplateBody>>, Refused> {
    let Query(Filter { r#type }) = filter.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let is_wanted = |kind| r#type.is_none_or(|wanted| wanted == kind);
    let mut all = Vec::new();
    for template in context.sandboxes.templates(&owner).await? {
        if is_wanted(kind_of(&template)) {
            all.push(TemplateBody::of(&context, template).await?);
        }
    }
    if is_wanted(TemplateKind::Build) {
        for built in context.sandboxes.built(&owner).await? {
            all.extend(TemplateBody::of_built(&context, &built).await?);
        }
    }
    Ok(Json(all))
}

/// Removes a snapshot, or all that was built under a name. Sandboxes that were made of it stay.
#[utoipa::path(
    delete, path = "/v1/snapshots/{name}", operation_id = "delete_snapshot", tag = "snapshots",
    params(SnapshotPath),
    responses((status = 204, description = "It is gone."), Missing, Failing),
)]
pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    SnapshotPath { name }: SnapshotPath,
) -> Result<StatusCode, Refused> {
    let is_built = context.sandboxes.built(&owner).await?.iter().any(|built| built.name == name);
    if is_built {
        context.sandboxes.remove_built(&owner, &name).await?;
    } else {
        context.sandboxes.remove_snapshot(&owner, &name).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

impl TemplateBody {
    async fn of(context: &Context, template: Template) -> Result<Self, Refused> {
        let size_bytes = match kind_of(&template) {
            TemplateKind::Image => None,
            _ => Some(context.sandboxes.template_bytes(&[template.name().as_str()]).await?),
        };
        Ok(Self {
            name: template.name().to_string(),
            r#type: kind_of(&template),
            vcpus: template.vcpus(),
            memory_mb: template.memory_mib(),
            size_bytes,
            created_at: template.created_at().map(|at| rfc3339(at.into())),
        })
    }

    async fn of_built(context: &Context, built: &Built) -> Result<Option<Self>, Refused> {
        let Some(foremost) = built.foremost() else { return Ok(None) };
        let names: Vec<&str> = built.templates.iter().map(|record| &*record.name).collect();
        Ok(Some(Self {
            name: built.name.clone(),
            r#type: TemplateKind::Build,
            vcpus: Some(foremost.vcpus),
            memory_mb: Some(foremost.memory_mib),
            size_bytes: Some(context.sandboxes.template_bytes(&names).await?),
            created_at: Some(rfc3339(of_ms(foremost.created_at_ms))),
        }))
    }
}

fn kind_of(template: &Template) -> TemplateKind {
    if template.is_snapshot() { TemplateKind::Snapshot } else { TemplateKind::Image }
}
