//! Builds of templates.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::tags::{bare, no_tag};
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::service::builds::log::{Entry, Level};
use crate::service::builds::recipe::{Action, Base, Login, Recipe, Step, When};
use crate::service::builds::registries::Registries;
use crate::service::builds::{Build, Wanted};
use crate::service::tags::{DEFAULT, normalized};
use crate::store::records::Hidden;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    name: Option<String>,
    /// What clients of old call the name.
    alias: Option<String>,
    tags: Option<Vec<String>>,
    cpu_count: Option<u32>,
    #[serde(rename = "memoryMB")]
    memory_mb: Option<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct RequestedBody {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    public: bool,
    names: Vec<String>,
    aliases: Vec<String>,
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StartRequest {
    from_image: Option<String>,
    from_template: Option<String>,
    from_image_registry: Option<LoginRequest>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    steps: Vec<StepRequest>,
    start_cmd: Option<String>,
    ready_cmd: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum LoginRequest {
    Registry {
        username: String,
        password: Hidden,
    },
    #[serde(rename_all = "camelCase")]
    Gcp {
        service_account_json: Hidden,
    },
    Aws {},
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StepRequest {
    r#type: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    force: bool,
    files_hash: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusBody {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "buildID")]
    build_id: String,
    status: &'static str,
    logs: Vec<String>,
    log_entries: Vec<EntryBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<ReasonBody>,
}

#[derive(Debug, Serialize)]
pub(super) struct LogsBody {
    logs: Vec<EntryBody>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReasonBody {
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
    log_entries: Vec<EntryBody>,
}

#[derive(Debug, Serialize)]
struct EntryBody {
    timestamp: String,
    message: String,
    level: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<String>,
}

pub(super) async fn request(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(request, _): Body<Request>,
) -> Result<(StatusCode, Json<RequestedBody>), Refused> {
    let name = request.name.or(request.alias).ok_or_else(|| Refused::bad_request("A template needs a name"))?;
    let (name, tag) = name.split_once(':').map_or((&*name, None), |(name, tag)| (name, Some(tag)));
    let asked = request.tags.unwrap_or_default();
    let mut tags = BTreeSet::new();
    for tag in tag.into_iter().chain(asked.iter().map(String::as_str)) {
        tags.insert(normalized(tag).ok_or_else(|| no_tag(tag))?);
    }
    if tags.is_empty() {
        tags.insert(DEFAULT.to_owned());
    }
    let wanted = Wanted {
        name: name.to_owned(),
        tags: tags.into_iter().collect(),
        vcpus: request.cpu_count,
        memory_mib: request.memory_mb,
    };
    let build = context.sandboxes.request_build(&owner, wanted).await?;
    Ok((StatusCode::ACCEPTED, Json(RequestedBody::from(&*build))))
}

pub(super) async fn start(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path((template, id)): Path<(String, String)>,
    Body(request, _): Body<StartRequest>,
) -> Result<StatusCode, Refused> {
    let build = named(&context, &owner, &template, &id)?;
    let recipe = request.recipe(context.sandboxes.registries())?;
    context.sandboxes.start_build(&owner, &build.id, recipe).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn status(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path((template, id)): Path<(String, String)>,
    query: Pairs,
) -> Result<Json<StatusBody>, Refused> {
    let build = named(&context, &owner, &template, &id)?;
    // What it is comes before its log: so the log of one that is over is whole.
    let now = build.now();
    let skipped = query.number("logsOffset", 0, 0..=u32::MAX)?;
    let entries = page(&build, &query, skipped)?;
    let reason = now.reason.map(|reason| ReasonBody {
        log_entries: reason
            .step
            .iter()
            .flat_map(|step| build.log_of_step(step, OF_REASON))
            .map(EntryBody::from)
            .collect(),
        message: reason.message,
        step: reason.step,
    });
    Ok(Json(StatusBody {
        template_id: build.wanted.name.clone(),
        build_id: build.id.clone(),
        status: now.status.e2b_name(),
        logs: Vec::new(),
        log_entries: entries,
        reason,
    }))
}

pub(super) async fn logs(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path((template, id)): Path<(String, String)>,
    query: Pairs,
) -> Result<Json<LogsBody>, Refused> {
    let build = named(&context, &owner, &template, &id)?;
    let limit = usize::try_from(query.number("limit", ENTRIES_MAX, 0..=ENTRIES_MAX)?.max(1)).unwrap_or(1);
    let cursor = query.integer("cursor")?;
    let is_backward = match query.value("direction") {
        None | Some("forward") => false,
        Some("backward") => true,
        Some(other) => return Err(Refused::bad_request(format!("direction is {other:?}: it is forward or backward"))),
    };
    let mut all = build.log(level(&query)?, 0, usize::MAX);
    if is_backward {
        all.reverse();
    }
    // A cursor is a time, in milliseconds.
    let is_beyond = |entry: &Entry| {
        cursor.is_none_or(|at_ms| if is_backward { entry.at_ms <= at_ms } else { entry.at_ms >= at_ms })
    };
    let listed = all.into_iter().filter(is_beyond).take(limit);
    Ok(Json(LogsBody { logs: listed.map(EntryBody::from).collect() }))
}

/// A build by its template and its id.
fn named(context: &Context, owner: &str, template: &str, id: &str) -> Result<Arc<Build>, Refused> {
    let build = context.sandboxes.build(owner, id)?;
    let name = bare(template);
    if build.wanted.name != name {
        return Err(Refused::not_found(format!("template '{template}' has no build '{id}'")));
    }
    Ok(build)
}

fn page(build: &Build, query: &Pairs, skipped: u32) -> Result<Vec<EntryBody>, Refused> {
    let limit = query.number("limit", ENTRIES_MAX, 0..=ENTRIES_MAX)?.max(1);
    let [skipped, limit] = [skipped, limit].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    Ok(build.log(level(query)?, skipped, limit).into_iter().map(EntryBody::from).collect())
}

fn level(query: &Pairs) -> Result<Level, Refused> {
    let Some(name) = query.value("level") else { return Ok(Level::Debug) };
    Level::named(name)
        .ok_or_else(|| Refused::bad_request(format!("level is {name:?}: it is debug, info, warn or error")))
}

impl StartRequest {
    fn recipe(self, registries: &Registries) -> Result<Recipe, Refused> {
        let base = match (self.from_template, self.from_image) {
            (Some(template), None) => Base::Template(template),
            (None, image) => from_image(image.as_deref(), self.from_image_registry, registries)?,
            (Some(_), Some(_)) => {
                return Err(Refused::bad_request(
                    "A template begins with an image or with a template, and not with both",
                ));
            }
        };
        let numbered = (1..).zip(self.steps);
        let steps = numbered.map(|(number, step)| step.step(number)).collect::<Result<_, _>>()?;
        let (start, ready) = (self.start_cmd.filter(is_said), self.ready_cmd.filter(is_said).map(when));
        Ok(Recipe { base, steps, is_fresh: self.force, start, ready })
    }
}

impl StepRequest {
    fn step(self, number: usize) -> Result<Step, Refused> {
        let Self { r#type, args, force: is_fresh, files_hash } = self;
        let bad = |why: &str| Refused::bad_request(format!("step {number} ({type}) {why}"));
        let mut said = args.into_iter();
        let mut next = || said.next().filter(is_said);
        let action = match &*r#type {
            "RUN" => Action::Run { line: next().ok_or_else(|| bad("has no command"))?, user: next() },
            "COPY" => {
                let (from, to) = (next(), next());
                let (from, to) = from.zip(to).ok_or_else(|| bad("needs a source and a destination"))?;
                let user = next();
                let mode = next().map(|mode| u32::from_str_radix(&mode, 8)).transpose();
                let mode = mode.map_err(|_| bad("has a mode that is no octal number"))?;
                let hash = files_hash.ok_or_else(|| bad("has no filesHash"))?;
                Action::Copy { from, to, user, mode, hash }
            }
            "WORKDIR" => Action::Workdir(next().ok_or_else(|| bad("has no path"))?),
            "USER" => Action::User(next().ok_or_else(|| bad("has no user"))?),
            "ENV" => {
                let words: Vec<String> = said.collect();
                let (pairs, []) = words.as_chunks::<2>() else { return Err(bad("has a variable without a value")) };
                Action::Env(pairs.iter().map(|[name, value]| (name.clone(), value.clone())).collect())
            }
            _ => return Err(bad("is no RUN, COPY, WORKDIR, USER or ENV")),
        };
        Ok(Step { action, is_fresh })
    }
}

/// E2B's own base is that of this server.
fn from_image(image: Option<&str>, login: Option<LoginRequest>, registries: &Registries) -> Result<Base, Refused> {
    let image = image.filter(|image| !image.is_empty());
    let is_base = image.is_none_or(|image| image.split([':', '@']).next() == Some(BASE_IMAGE));
    let Some(image) = image.filter(|_| !is_base) else { return Ok(Base::Template(BASE.to_owned())) };
    let login = match login {
        None => None,
        Some(LoginRequest::Registry { username: user, password }) => Some(Login { user, password }),
        // As Google's registries have it.
        Some(LoginRequest::Gcp { service_account_json: password }) => {
            Some(Login { user: "_json_key".to_owned(), password })
        }
        Some(LoginRequest::Aws {}) => {
            return Err(Refused::bad_request(
                "A login of type aws is not served: give the user AWS and the password that `aws ecr get-login-password` prints",
            ));
        }
    };
    let reference = registries.allowed(image).map_err(Refused::bad_request)?;
    Ok(Base::Image(reference, login))
}

/// `sleep` alone, as `wait_for_timeout` makes it, needs no guest to wait, and may take longer than a check.
fn when(line: String) -> When {
    let seconds = line.strip_prefix("sleep ").and_then(|number| number.trim().parse().ok());
    match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(time) => When::After(time),
        None => When::Command(line),
    }
}

#[expect(clippy::ptr_arg, reason = "it is for filters of options")]
fn is_said(text: &String) -> bool {
    !text.is_empty()
}

impl From<&Build> for RequestedBody {
    fn from(build: &Build) -> Self {
        let name = build.wanted.name.clone();
        Self {
            template_id: name.clone(),
            build_id: build.id.clone(),
            public: false,
            names: vec![name.clone()],
            aliases: vec![name],
            tags: build.wanted.tags.clone(),
        }
    }
}

impl From<Entry> for EntryBody {
    fn from(entry: Entry) -> Self {
        Self {
            timestamp: rfc3339(of_ms(entry.at_ms)),
            message: entry.message,
            level: entry.level.name(),
            step: entry.step,
        }
    }
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginRequest")
    }
}

const BASE_IMAGE: &str = "e2bdev/base";
const BASE: &str = "base";
const ENTRIES_MAX: u32 = 100;
/// Of the step that has failed.
const OF_REASON: usize = 50;
