//! Templates: the images, and the snapshots of the key.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use wrenn_core::Template;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::sandboxes::template_name;
use crate::api::e2b::tags::build_id;
use crate::api::state::Context;
use crate::api::time::rfc3339;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TemplateBody {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    public: bool,
    names: Vec<String>,
    aliases: Vec<String>,
    created_at: String,
    updated_at: String,
    created_by: Option<String>,
    last_spawned_at: Option<String>,
    spawn_count: u64,
    build_count: u32,
    build_status: &'static str,
    envd_version: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AliasBody {
    #[serde(rename = "templateID")]
    template_id: String,
    public: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct NamesBody {
    names: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Patch {
    public: Option<bool>,
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
) -> Result<Json<Vec<TemplateBody>>, Refused> {
    let templates = context.sandboxes.templates(&owner).await?;
    Ok(Json(templates.iter().map(TemplateBody::from).collect()))
}

pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<Json<TemplateBody>, Refused> {
    Ok(Json(TemplateBody::from(&named(&context, &owner, &id).await?)))
}

pub(super) async fn alias(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(alias): Path<String>,
) -> Result<Json<AliasBody>, Refused> {
    let template = named(&context, &owner, &alias).await?;
    Ok(Json(AliasBody { template_id: template.name().to_string(), public: !template.is_snapshot() }))
}

/// An image is everybody's, and a snapshot its key's; nothing else is to be had.
pub(super) async fn patch(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Patch { public }, _): Body<Patch>,
) -> Result<Json<NamesBody>, Refused> {
    let template = named(&context, &owner, &id).await?;
    match public {
        Some(public) if public == template.is_snapshot() => Err(Refused::new(
            StatusCode::NOT_IMPLEMENTED,
            "wrenn's images are public, and its snapshots are not: neither can be changed yet",
        )),
        _ => Ok(Json(NamesBody { names: vec![template.name().to_string()] })),
    }
}

pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    // Who deletes a template names it itself.
    let template = template(&context, &owner, template_name(&id), &id).await?;
    if !template.is_snapshot() {
        return Err(Refused::new(
            StatusCode::FORBIDDEN,
            format!("template '{id}' is an image of this server's, and everybody's"),
        ));
    }
    context.sandboxes.remove_snapshot(&owner, template.name().as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The template of this name, or that a name with a tag stands for.
async fn named(context: &Context, owner: &str, id: &str) -> Result<Template, Refused> {
    let name = if id.contains(':') { context.sandboxes.resolve(owner, id).await? } else { id.to_owned() };
    template(context, owner, &name, id).await
}

async fn template(context: &Context, owner: &str, name: &str, asked: &str) -> Result<Template, Refused> {
    let templates = context.sandboxes.templates(owner).await?;
    let found = templates.into_iter().find(|template| template.name().as_str() == name);
    found.ok_or_else(|| Refused::not_found(format!("template '{asked}' not found")))
}

pub(super) fn created_at(template: &Template) -> String {
    rfc3339(template.created_at().map_or(OffsetDateTime::UNIX_EPOCH, OffsetDateTime::from))
}

impl From<&Template> for TemplateBody {
    fn from(template: &Template) -> Self {
        let name = template.name().to_string();
        Self {
            template_id: name.clone(),
            build_id: build_id(&name),
            cpu_count: template.vcpus().unwrap_or(1),
            memory_mb: template.memory_mib().unwrap_or(512),
            disk_size_mb: 0,
            public: !template.is_snapshot(),
            names: vec![name.clone()],
            aliases: vec![name],
            created_at: created_at(template),
            updated_at: created_at(template),
            created_by: None,
            last_spawned_at: None,
            spawn_count: 0,
            build_count: 1,
            build_status: "ready",
            envd_version: wrenn_envd::PROTOCOL_VERSION,
        }
    }
}
