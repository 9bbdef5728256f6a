//! Templates: the images, and the snapshots and the builds of the key.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use wrenn_core::Template;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::sandboxes::template_name;
use crate::api::e2b::tags::bare;
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::service::builds::{Build, build_id};
use crate::service::sandboxes::built::Built;
use crate::store::records::SnapshotRecord;

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
    build_count: usize,
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

/// A template with what was built under its name.
#[derive(Debug, Serialize)]
pub(super) struct WithBuildsBody {
    #[serde(flatten)]
    template: TemplateBody,
    builds: Vec<BuildBody>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildBody {
    #[serde(rename = "buildID")]
    build_id: String,
    status: &'static str,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<String>,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    envd_version: &'static str,
}

/// What there is under a name.
enum Found {
    Plain(Template),
    Built(Built),
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    query: Pairs,
) -> Result<(HeaderMap, Json<Vec<TemplateBody>>), Refused> {
    let built = context.sandboxes.built(&owner).await?;
    let templates = context.sandboxes.templates(&owner).await?;
    let mut all: Vec<TemplateBody> = templates.iter().map(TemplateBody::from).collect();
    all.extend(built.iter().filter_map(TemplateBody::of_built));
    let (headers, page) = query.page()?.of(all, |template| &template.template_id);
    Ok((headers, Json(page)))
}

pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    query: Pairs,
) -> Result<(HeaderMap, Json<WithBuildsBody>), Refused> {
    let (template, mut builds) = match named(&context, &owner, &id).await? {
        Found::Plain(template) => {
            let template = TemplateBody::from(&template);
            let builds = vec![BuildBody::of_plain(&template)];
            (Some(template), builds)
        }
        Found::Built(built) => (TemplateBody::of_built(&built), built.templates.iter().map(BuildBody::from).collect()),
    };
    let template = template.ok_or_else(|| none(&id))?;
    // Those that are over and have made something are there already.
    let known: Vec<String> = builds.iter().map(|build| build.build_id.clone()).collect();
    let others = context.sandboxes.builds(&owner).into_iter();
    let others = others.filter(|build| build.wanted.name == template.template_id && !known.contains(&build.id));
    builds.extend(others.map(|build| BuildBody::from(&*build)));
    let (headers, builds) = query.page()?.of(builds, |build| &build.build_id);
    Ok((headers, Json(WithBuildsBody { template, builds })))
}

pub(super) async fn alias(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(alias): Path<String>,
) -> Result<Json<AliasBody>, Refused> {
    let (template_id, public) = match named(&context, &owner, &alias).await? {
        Found::Plain(template) => (template.name().to_string(), !template.is_snapshot()),
        Found::Built(built) => (built.name, false),
    };
    Ok(Json(AliasBody { template_id, public }))
}

/// An image is everybody's, and a snapshot its key's; nothing else is to be had.
pub(super) async fn patch(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(Patch { public }, _): Body<Patch>,
) -> Result<Json<NamesBody>, Refused> {
    let (name, is_public) = match named(&context, &owner, &id).await? {
        Found::Plain(template) => (template.name().to_string(), !template.is_snapshot()),
        Found::Built(built) => (built.name, false),
    };
    match public {
        Some(public) if public != is_public => Err(Refused::new(
            StatusCode::NOT_IMPLEMENTED,
            "wrenn's images are public, and a key's own templates are not: neither can be changed yet",
        )),
        _ => Ok(Json(NamesBody { names: vec![name] })),
    }
}

/// Who deletes a template names it itself. Of a name that was built under all builds go.
pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    match plain(&context, &owner, template_name(&id)).await? {
        None => context.sandboxes.remove_built(&owner, template_name(&id)).await?,
        Some(template) if template.is_snapshot() => {
            context.sandboxes.remove_snapshot(&owner, template.name().as_str()).await?;
        }
        Some(_) => {
            return Err(Refused::new(
                StatusCode::FORBIDDEN,
                format!("template '{id}' is an image of this server's, and everybody's"),
            ));
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// The template of this name, or that a name with a tag stands for. What was built has the name that it was built under.
async fn named(context: &Context, owner: &str, id: &str) -> Result<Found, Refused> {
    let built = context.sandboxes.built(owner).await?.into_iter().find(|built| built.name == bare(id));
    let name = if id.contains(':') { context.sandboxes.resolve(owner, id).await? } else { id.to_owned() };
    // A tag of its own may stand for another template.
    let is_own = |built: &Built| !id.contains(':') || built.templates.iter().any(|record| record.name == name);
    if let Some(built) = built.filter(is_own) {
        return Ok(Found::Built(built));
    }
    let of_another = context.sandboxes.built(owner).await?.into_iter();
    let mut of_another = of_another.filter(|built| built.templates.iter().any(|record| record.name == name));
    if let Some(built) = of_another.next() {
        return Ok(Found::Built(built));
    }
    plain(context, owner, &name).await?.map(Found::Plain).ok_or_else(|| none(id))
}

async fn plain(context: &Context, owner: &str, name: &str) -> Result<Option<Template>, Refused> {
    let templates = context.sandboxes.templates(owner).await?;
    Ok(templates.into_iter().find(|template| template.name().as_str() == name))
}

fn none(id: &str) -> Refused {
    Refused::not_found(format!("template '{id}' not found"))
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

impl TemplateBody {
    fn of_built(built: &Built) -> Option<Self> {
        let (foremost, first) = (built.foremost()?, built.templates.last()?);
        Some(Self {
            template_id: built.name.clone(),
            build_id: build_id(&foremost.name),
            cpu_count: foremost.vcpus,
            memory_mb: foremost.memory_mib,
            disk_size_mb: foremost.disk_mib,
            public: false,
            names: vec![built.name.clone()],
            aliases: vec![built.name.clone()],
            created_at: rfc3339(of_ms(first.created_at_ms)),
            updated_at: rfc3339(of_ms(foremost.created_at_ms)),
            created_by: None,
            last_spawned_at: None,
            spawn_count: 0,
            build_count: built.templates.len(),
            build_status: "ready",
            envd_version: wrenn_envd::PROTOCOL_VERSION,
        })
    }
}

impl BuildBody {
    fn of_plain(template: &TemplateBody) -> Self {
        Self {
            build_id: template.build_id.clone(),
            status: template.build_status,
            created_at: template.created_at.clone(),
            updated_at: template.updated_at.clone(),
            finished_at: Some(template.updated_at.clone()),
            cpu_count: template.cpu_count,
            memory_mb: template.memory_mb,
            envd_version: template.envd_version,
        }
    }
}

impl From<&SnapshotRecord> for BuildBody {
    fn from(record: &SnapshotRecord) -> Self {
        let at = rfc3339(of_ms(record.created_at_ms));
        Self {
            build_id: build_id(&record.name),
            status: "ready",
            created_at: at.clone(),
            updated_at: at.clone(),
            finished_at: Some(at),
            cpu_count: record.vcpus,
            memory_mb: record.memory_mib,
            envd_version: wrenn_envd::PROTOCOL_VERSION,
        }
    }
}

impl From<&Build> for BuildBody {
    fn from(build: &Build) -> Self {
        let (now, created_at) = (build.now(), rfc3339(of_ms(build.created_at_ms)));
        let updated_at = rfc3339(of_ms(now.changed_at_ms));
        Self {
            build_id: build.id.clone(),
            status: now.status.e2b_name(),
            created_at,
            finished_at: build.is_over().then(|| updated_at.clone()),
            updated_at,
            cpu_count: build.wanted.vcpus.unwrap_or(1),
            memory_mb: build.wanted.memory_mib.unwrap_or(512),
            envd_version: wrenn_envd::PROTOCOL_VERSION,
        }
    }
}
