//! Builds of templates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::exact;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::BuildPath;
use crate::api::v1::refusals::{BadInput, Failing, Missing};
use crate::service::builds::log::{Entry, Level};
use crate::service::builds::recipe::{Action, Base, Recipe, Step, When};
use crate::service::builds::{Build, BuildStatus, Wanted};
use crate::service::tags::{DEFAULT, normalized};

/// A template to build.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewBuild {
    /// What it is to be called.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$", example = "app")]
    name: String,
    /// The tags of the name that are to stand for it. Default: `default`, which is the name without a tag.
    #[serde(default)]
    #[schema(schema_with = exact::tags)]
    tags: Vec<String>,
    /// The template that it begins with, perhaps with a tag. Default: `base`.
    #[schema(pattern = "^[a-z0-9][a-z0-9._-]{0,62}(:[A-Za-z0-9._-]{1,128})?$", example = "base")]
    from: Option<String>,
    /// The image of a registry that it begins with, instead.
    #[schema(example = "docker.io/library/python:3.12")]
    from_image: Option<String>,
    /// A Dockerfile instead of both, and of `steps`. It has no files to copy.
    #[schema(example = "FROM base\nRUN echo hello > hello")]
    dockerfile: Option<String>,
    /// What is done, in its order.
    #[serde(default)]
    steps: Vec<StepBody>,
    /// A line of shell that runs in the template's sandboxes.
    #[schema(example = "python3 -m http.server 8000")]
    start: Option<String>,
    /// When what was started is ready. Default: after a second.
    ready: Option<ReadyBody>,
    /// Its virtual processors. Default: those of what it begins with.
    #[schema(minimum = 1, maximum = 32)]
    vcpus: Option<u32>,
    /// Its memory, in MiB. Default: that of what it begins with.
    #[schema(minimum = 128, maximum = 65536)]
    memory_mb: Option<u32>,
    /// Whether everything is done anew.
    #[serde(default)]
    no_cache: bool,
}

/// A step of a build.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum StepBody {
    /// Runs a line of shell.
    Run {
        /// The line.
        #[schema(example = "pip install numpy")]
        cmd: String,
        /// As whom. Default: the user so far.
        user: Option<String>,
    },
    /// Sets variables.
    Env {
        /// Their values, by name.
        envs: BTreeMap<String, String>,
    },
    /// Sets the working directory.
    Workdir {
        /// Its path.
        path: String,
    },
    /// Sets the user.
    User {
        /// The user's name.
        user: String,
    },
}

/// When what was started is ready: one of these.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum ReadyBody {
    /// When this port takes connections.
    Port(u16),
    /// When this line of shell succeeds.
    Command(String),
    /// When a `GET` is answered with success.
    Http {
        /// On which port.
        port: u16,
        /// For which path.
        #[schema(example = "/health")]
        path: String,
    },
    /// After so many seconds.
    AfterSec(u32),
}

/// A build as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Build)]
pub(super) struct BuildBody {
    /// Its id.
    #[schema(pattern = "^[0-9a-f-]{36}$")]
    id: String,
    /// What it makes.
    name: String,
    /// The tags of the name that stand for it when it is there.
    tags: Vec<String>,
    status: StatusBody,
    /// Why it failed; null where it did not.
    reason: Option<ReasonBody>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    created_at: String,
    /// When its status last changed.
    #[schema(format = DateTime)]
    updated_at: String,
}

/// How far a build is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BuildStatus)]
#[serde(rename_all = "snake_case")]
enum StatusBody {
    /// It waits for its turn.
    Waiting,
    /// Its steps are done.
    Building,
    /// The template is there.
    Ready,
    /// It failed.
    Error,
    /// It was cancelled.
    Cancelled,
}

/// Why a build has failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BuildReason)]
struct ReasonBody {
    /// What went wrong.
    message: String,
    /// In which step: its number from 1 on, `base` for what it begins with, `finalize` for the start; null for the whole.
    step: Option<String>,
}

/// What a build has told.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BuildLogEntry)]
pub(super) struct EntryBody {
    /// When.
    #[schema(format = DateTime)]
    at: String,
    /// `debug`, `info`, `warn` or `error`. What a command writes to its standard error is `warn`.
    #[schema(example = "info")]
    level: &'static str,
    /// Of which step it is, as in a build's reason; null for the whole.
    step: Option<String>,
    /// The text.
    message: String,
}

/// Which part of a log is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogPage {
    /// How many entries are passed over.
    #[serde(default)]
    offset: u32,
    /// How many entries there are at most.
    #[serde(default = "entries_default")]
    #[param(minimum = 1, maximum = 1000)]
    limit: usize,
}

/// Begins to build a template. It is built when its build is `ready`.
#[utoipa::path(
    post, path = "/v1/builds", operation_id = "create_build", tag = "builds",
    request_body = NewBuild,
    responses((status = 202, description = "It has begun.", body = BuildBody), Failing),
)]
pub(super) async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    Body(new): Body<NewBuild>,
) -> Result<(StatusCode, Json<BuildBody>), Refused> {
    let mut tags = BTreeSet::new();
    for tag in &new.tags {
        let bad = || {
            Refused::bad_request(format!("{tag:?} is no tag: it has letters, digits, dots, hyphens and underscores"))
        };
        tags.insert(normalized(tag).ok_or_else(bad)?);
    }
    if tags.is_empty() {
        tags.insert(DEFAULT.to_owned());
    }
    let wanted = Wanted {
        name: new.name.clone(),
        tags: tags.into_iter().collect(),
        vcpus: new.vcpus,
        memory_mib: new.memory_mb,
    };
    let recipe = new.recipe(&context)?;
    let build = context.sandboxes.request_build(&owner, wanted).await?;
    if let Err(error) = context.sandboxes.start_build(&owner, &build.id, recipe).await {
        context.sandboxes.cancel_build(&owner, &build.id).await?;
        return Err(error.into());
    }
    Ok((StatusCode::ACCEPTED, Json(BuildBody::from(&*build))))
}

/// Lists the builds of the last day, the newest first.
#[utoipa::path(
    get, path = "/v1/builds", operation_id = "list_builds", tag = "builds",
    responses((status = 200, description = "Those of the key.", body = Vec<BuildBody>)),
)]
pub(super) async fn list(State(context): State<Context>, Owner(owner): Owner) -> Json<Vec<BuildBody>> {
    Json(context.sandboxes.builds(&owner).iter().map(|build| BuildBody::from(&**build)).collect())
}

/// Tells how far a build is.
#[utoipa::path(
    get, path = "/v1/builds/{id}", operation_id = "get_build", tag = "builds",
    params(BuildPath),
    responses((status = 200, description = "The build.", body = BuildBody), Missing),
)]
pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    BuildPath { id }: BuildPath,
) -> Result<Json<BuildBody>, Refused> {
    Ok(Json(BuildBody::from(&*context.sandboxes.build(&owner, &id)?)))
}

/// Lists what a build has told.
#[utoipa::path(
    get, path = "/v1/builds/{id}/logs", operation_id = "list_build_logs", tag = "builds",
    params(BuildPath, LogPage),
    responses((status = 200, description = "The entries, the oldest first.", body = Vec<EntryBody>), BadInput, Missing),
)]
pub(super) async fn logs(
    State(context): State<Context>,
    Owner(owner): Owner,
    BuildPath { id }: BuildPath,
    page: Result<Query<LogPage>, QueryRejection>,
) -> Result<Json<Vec<EntryBody>>, Refused> {
    let Query(LogPage { offset, limit }) = page.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    if !(1..=ENTRIES_MAX).contains(&limit) {
        return Err(Refused::bad_request(format!("limit is {limit}: it is from 1 to {ENTRIES_MAX}")));
    }
    let entries = context.sandboxes.build(&owner, &id)?.log(Level::Debug, offset, limit);
    Ok(Json(entries.into_iter().map(EntryBody::from).collect()))
}

/// Cancels a build, if it is not over. The steps that were done are kept for the next one.
#[utoipa::path(
    delete, path = "/v1/builds/{id}", operation_id = "cancel_build", tag = "builds",
    params(BuildPath),
    responses((status = 204, description = "It ends, or has ended."), Missing),
)]
pub(super) async fn cancel(
    State(context): State<Context>,
    Owner(owner): Owner,
    BuildPath { id }: BuildPath,
) -> Result<StatusCode, Refused> {
    context.sandboxes.cancel_build(&owner, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl NewBuild {
    fn recipe(self, context: &Context) -> Result<Recipe, Refused> {
        let base = match (self.from, self.from_image, self.dockerfile) {
            (None, None, Some(_)) if !self.steps.is_empty() => {
                return Err(Refused::bad_request("a Dockerfile has its own steps: leave out `steps`, or `dockerfile`"));
            }
            (None, None, Some(text)) => Base::Dockerfile(text),
            (None, Some(image), None) => {
                Base::Image(context.sandboxes.registries().allowed(&image).map_err(Refused::bad_request)?, None)
            }
            (from, None, None) => Base::Template(from.unwrap_or_else(|| BASE.to_owned())),
            _ => return Err(Refused::bad_request("a build has one of `from`, `from_image` and `dockerfile`")),
        };
        if self.ready.is_some() && self.start.is_none() && !matches!(base, Base::Dockerfile(_)) {
            return Err(Refused::bad_request("`ready` needs a `start`: nothing would become ready"));
        }
        let steps = self.steps.into_iter().map(|step| Step { action: step.into(), is_fresh: false }).collect();
        let ready = self.ready.map(When::from);
        Ok(Recipe { base, steps, is_fresh: self.no_cache, start: self.start, ready })
    }
}

impl From<StepBody> for Action {
    fn from(step: StepBody) -> Self {
        match step {
            StepBody::Run { cmd: line, user } => Self::Run { line, user },
            StepBody::Env { envs } => Self::Env(envs.into_iter().collect()),
            StepBody::Workdir { path } => Self::Workdir(path),
            StepBody::User { user } => Self::User(user),
        }
    }
}

impl From<ReadyBody> for When {
    fn from(ready: ReadyBody) -> Self {
        match ready {
            ReadyBody::Port(port) => Self::Port(port),
            ReadyBody::Command(line) => Self::Command(line),
            ReadyBody::Http { port, path } => Self::Http(port, path),
            ReadyBody::AfterSec(seconds) => Self::After(Duration::from_secs(seconds.into())),
        }
    }
}

impl From<&Build> for BuildBody {
    fn from(build: &Build) -> Self {
        let now = build.now();
        Self {
            id: build.id.clone(),
            name: build.wanted.name.clone(),
            tags: build.wanted.tags.clone(),
            status: match now.status {
                BuildStatus::Requested | BuildStatus::Waiting => StatusBody::Waiting,
                BuildStatus::Building => StatusBody::Building,
                BuildStatus::Ready => StatusBody::Ready,
                BuildStatus::Error => StatusBody::Error,
                BuildStatus::Cancelled => StatusBody::Cancelled,
            },
            reason: now.reason.map(|reason| ReasonBody { message: reason.message, step: reason.step }),
            created_at: rfc3339(of_ms(build.created_at_ms)),
            updated_at: rfc3339(of_ms(now.changed_at_ms)),
        }
    }
}

impl From<Entry> for EntryBody {
    fn from(Entry { at_ms, level, step, message }: Entry) -> Self {
        Self { at: rfc3339(of_ms(at_ms)), level: level.name(), step, message }
    }
}

fn entries_default() -> usize {
    100
}

const ENTRIES_MAX: usize = 1000;
const BASE: &str = "base";
