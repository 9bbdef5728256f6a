//! Templates' tags, and the builds that they can stand for.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::{TagPath, TemplatePath};
use crate::api::v1::refusals::{BadInput, Missing, TooMany};
use crate::service::builds::build_id;
use crate::service::tags::{Assigned, Tagged};

/// What a tag is to stand for: one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Assignment {
    /// A template, perhaps with a tag.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}(:[A-Za-z0-9._-]{1,128})?$", example = "app:v1")]
    target: Option<String>,
    /// A build of the same name, as the name's history has it.
    #[schema(pattern = "^[0-9a-f-]{36}$")]
    build_id: Option<String>,
}

/// What a name stands for with a tag.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tag)]
pub(super) struct TagBody {
    /// The tag, in small letters.
    #[schema(example = "stable")]
    tag: String,
    /// The template: a snapshot or an image, or the name that it was built under.
    #[schema(example = "app")]
    template: String,
    /// The build that made it; null where none did.
    build_id: Option<String>,
    /// When the tag was assigned; when the template was made, where it never was.
    #[schema(format = DateTime)]
    assigned_at: String,
}

/// What was built under a name.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = HistoryEntry)]
pub(super) struct HistoryBody {
    /// The build that made it.
    build_id: String,
    /// The virtual processors of its sandboxes.
    vcpus: u32,
    /// Their memory, in MiB.
    memory_mb: u32,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: String,
    /// The tags of the name that stand for it.
    tags: Vec<String>,
}

/// Lists the tags of a template's name. `default` is what the name stands for without a tag.
#[utoipa::path(
    get, path = "/v1/templates/{name}/tags", operation_id = "list_tags", tag = "templates",
    params(TemplatePath),
    responses((status = 200, description = "The tags, by their names.", body = Vec<TagBody>), Missing),
)]
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    TemplatePath { name }: TemplatePath,
) -> Result<Json<Vec<TagBody>>, Refused> {
    let tags = context.sandboxes.assigned(&owner, &name).await?;
    Ok(Json(tags.into_iter().map(TagBody::from).collect()))
}

/// Tells what a name stands for with a tag.
#[utoipa::path(
    get, path = "/v1/templates/{name}/tags/{tag}", operation_id = "get_tag", tag = "templates",
    params(TagPath),
    responses((status = 200, description = "The tag.", body = TagBody), BadInput, Missing),
)]
pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    TagPath { name, tag }: TagPath,
) -> Result<Json<TagBody>, Refused> {
    let tagged = tagged(&name, &tag)?;
    Ok(Json(context.sandboxes.assigned_to(&owner, &tagged).await?.into()))
}

/// Has a name stand for a template with this tag, also where it stood for another one.
#[utoipa::path(
    put, path = "/v1/templates/{name}/tags/{tag}", operation_id = "assign_tag", tag = "templates",
    params(TagPath), request_body = Assignment,
    responses((status = 200, description = "It stands for that from now on.", body = TagBody), Missing, TooMany),
)]
pub(super) async fn assign(
    State(context): State<Context>,
    Owner(owner): Owner,
    TagPath { name, tag }: TagPath,
    Body(assignment): Body<Assignment>,
) -> Result<Json<TagBody>, Refused> {
    let tagged = tagged(&name, &tag)?;
    let target = match assignment {
        Assignment { target: Some(target), build_id: None } => target,
        Assignment { target: None, build_id: Some(id) } => {
            context.sandboxes.template_of_build(&owner, &name, &id).await?
        }
        _ => return Err(Refused::bad_request("what it is to stand for is `target` or `build_id`: give one of them")),
    };
    context.sandboxes.assign_tags(&owner, &target, std::slice::from_ref(&tagged)).await?;
    Ok(Json(context.sandboxes.assigned_to(&owner, &tagged).await?.into()))
}

/// Has a name stand for nothing with this tag any more, or, with `default`, for the template of that name again.
#[utoipa::path(
    delete, path = "/v1/templates/{name}/tags/{tag}", operation_id = "remove_tag", tag = "templates",
    params(TagPath),
    responses((status = 204, description = "It is gone."), BadInput, Missing),
)]
pub(super) async fn remove(
    State(context): State<Context>,
    Owner(owner): Owner,
    TagPath { name, tag }: TagPath,
) -> Result<StatusCode, Refused> {
    let tagged = tagged(&name, &tag)?;
    context.sandboxes.assigned_to(&owner, &tagged).await?;
    context.sandboxes.remove_tags(&owner, &name, &[tagged]).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what was built under a name and is kept, the newest first. A tag that is assigned to an earlier build leads back to it.
#[utoipa::path(
    get, path = "/v1/templates/{name}/history", operation_id = "list_history", tag = "templates",
    params(TemplatePath),
    responses((status = 200, description = "What there is.", body = Vec<HistoryBody>), Missing),
)]
pub(super) async fn history(
    State(context): State<Context>,
    Owner(owner): Owner,
    TemplatePath { name }: TemplatePath,
) -> Result<Json<Vec<HistoryBody>>, Refused> {
    let built = context.sandboxes.built_under(&owner, &name).await?;
    let entry = |record: &crate::store::records::SnapshotRecord| {
        let own = built.tags.iter().filter(|tag| tag.template == record.name);
        HistoryBody {
            build_id: build_id(&record.name),
            vcpus: record.vcpus,
            memory_mb: record.memory_mib,
            created_at: rfc3339(of_ms(record.created_at_ms)),
            tags: own.map(|tag| tag.tag.clone()).collect(),
        }
    };
    Ok(Json(built.templates.iter().map(entry).collect()))
}

fn tagged(name: &str, tag: &str) -> Result<Tagged, Refused> {
    let is_plain = !name.contains(':') && !tag.contains(':');
    Tagged::of(name, tag).filter(|_| is_plain).ok_or_else(|| {
        let why = "it has 1 to 128 letters, digits, dots, hyphens and underscores, and its name has no tag besides";
        Refused::bad_request(format!("{tag:?} is no tag: {why}"))
    })
}

impl From<Assigned> for TagBody {
    fn from(assigned: Assigned) -> Self {
        let Assigned { record, built_as } = assigned;
        Self {
            tag: record.tag,
            build_id: built_as.as_ref().map(|_| build_id(&record.template)),
            template: built_as.unwrap_or(record.template),
            assigned_at: rfc3339(of_ms(record.created_at_ms)),
        }
    }
}
