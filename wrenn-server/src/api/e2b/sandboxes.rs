//! Sandboxes: made, looked at, listed and ended.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::body::Body;
use crate::api::e2b::network::NetworkBody;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::unbuilt::unbuilt;
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::service::sandboxes::making::Once;
use crate::service::sandboxes::{Found, Wanted};
use crate::service::secret::Purpose;
use crate::store::records::{Asked, By, Order, Page, Status, TimeoutFrom};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<i64>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<NetworkBody>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct AutoResume {
    enabled: bool,
}

/// A sandbox, as whoever made it or connects to it gets it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SandboxBody {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    alias: String,
    envd_version: &'static str,
    envd_access_token: String,
    traffic_access_token: Option<String>,
    domain: Option<String>,
}

/// A sandbox in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListedBody {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    alias: String,
    envd_version: &'static str,
    started_at: String,
    end_at: String,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u32,
    state: &'static str,
    metadata: BTreeMap<String, String>,
    volume_mounts: [(); 0],
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_mode: Option<&'static str>,
}

/// A sandbox by itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DetailBody {
    #[serde(flatten)]
    listed: ListedBody,
    domain: Option<String>,
    envd_access_token: String,
    allow_internet_access: Option<bool>,
    network: NetworkBody,
    lifecycle: Lifecycle,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    auto_resume: bool,
    on_timeout: &'static str,
}

/// What the first generation of paths makes live for so long.
pub(super) async fn create_v1(
    state: State<Context>,
    owner: Owner,
    headers: HeaderMap,
    body: Body<NewSandbox>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    create(state, owner, headers, body, TIMEOUT_V1_SEC).await
}

pub(super) async fn create_v2(
    state: State<Context>,
    owner: Owner,
    headers: HeaderMap,
    body: Body<NewSandbox>,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    create(state, owner, headers, body, TIMEOUT_V2_SEC).await
}

async fn create(
    State(context): State<Context>,
    Owner(owner): Owner,
    headers: HeaderMap,
    Body(body, digest): Body<NewSandbox>,
    timeout_sec: u32,
) -> Result<(StatusCode, Json<SandboxBody>), Refused> {
    let once = idempotency_key(&headers)?.map(|key| Once { key, digest });
    let wanted = body.wanted(timeout_sec)?;
    let found = context.sandboxes.create(&owner, wanted, once).await?;
    Ok((StatusCode::CREATED, Json(SandboxBody::new(&context, &found))))
}

pub(super) async fn get(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<Json<DetailBody>, Refused> {
    let found = there(&context, &owner, &id).await?;
    Ok(Json(DetailBody::new(&context, found)))
}

pub(super) async fn delete(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    let found = there(&context, &owner, &id).await?;
    context.sandboxes.delete(&owner, found.record.id.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Those that run or are paused, page by page.
pub(super) async fn list_v2(
    State(context): State<Context>,
    Owner(owner): Owner,
    query: Pairs,
) -> Result<(HeaderMap, Json<Vec<ListedBody>>), Refused> {
    let statuses = match &*query.list("state") {
        [] => vec![Status::Running, Status::Paused],
        states => states.iter().map(|state| status(state)).collect::<Result<_, _>>()?,
    };
    let order = match query.value("order") {
        None | Some("desc") => Order::NewestFirst,
        Some("asc") => Order::OldestFirst,
        Some(other) => return Err(Refused::bad_request(format!("order is {other:?}: it is `asc` or `desc`"))),
    };
    let started_after_ms = query.value("startedAfter").map(of_rfc3339).transpose()?;
    let (labels, template) = (query.pairs("metadata"), query.text("template"));
    let fits = |found: &Found| {
        let record = &found.record;
        labels.iter().all(|(name, value)| record.asked.labels.get(name) == Some(value))
            && template.is_none_or(|template| record.template_name() == template_name(template))
            && started_after_ms.is_none_or(|after| record.started_at_ms >= after)
    };
    let len_max = query.number("limit", PAGE_MAX, 1..=PAGE_MAX)?;
    let after = query.text("nextToken").map(of_token).transpose()?;
    let page = Page { owner: &owner, statuses: &statuses, by: By::Started, order, after, len_max: PAGE_MAX };
    let (listed, next) = fill(&context, page, fits, usize::try_from(len_max).unwrap_or(1)).await?;
    let running = context.sandboxes.usage(&owner).await?.sandboxes;
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("x-total-running"), running.into());
    if let Some(next) = next.and_then(|token| HeaderValue::from_str(&token).ok()) {
        headers.insert(HeaderName::from_static("x-next-token"), next);
    }
    Ok((headers, Json(listed.into_iter().map(ListedBody::from).collect())))
}

/// All that run, for clients of old.
pub(super) async fn list_v1(
    State(context): State<Context>,
    Owner(owner): Owner,
    query: Pairs,
) -> Result<Json<Vec<ListedBody>>, Refused> {
    let labels = query.pairs("metadata");
    let fits = |found: &Found| labels.iter().all(|(name, value)| found.record.asked.labels.get(name) == Some(value));
    let statuses = [Status::Running];
    let (by, order) = (By::Started, Order::NewestFirst);
    let page = Page { owner: &owner, statuses: &statuses, by, order, after: None, len_max: PAGE_MAX };
    let (listed, _) = fill(&context, page, fits, LISTED_MAX).await?;
    Ok(Json(listed.into_iter().map(ListedBody::from).collect()))
}

/// A page of those that fit, and where the next one begins, if there may be one.
async fn fill(
    context: &Context,
    mut page: Page<'_>,
    fits: impl Fn(&Found) -> bool,
    len_max: usize,
) -> Result<(Vec<Found>, Option<String>), Refused> {
    let mut listed = Vec::new();
    loop {
        let found = context.sandboxes.page(&page).await?;
        let is_last = found.len() < usize::try_from(page.len_max).unwrap_or(usize::MAX);
        for found in found {
            let at = (found.record.started_at_ms, found.record.id.to_string());
            if fits(&found) {
                if listed.len() == len_max {
                    return Ok((listed, page.after.map(|(at_ms, id)| format!("{at_ms}-{id}"))));
                }
                listed.push(found);
            }
            page.after = Some(at);
        }
        if is_last {
            return Ok((listed, None));
        }
    }
}

/// One that runs or is paused. An id may have a client's after it, as clients of old had it.
pub(super) async fn there(context: &Context, owner: &str, id: &str) -> Result<Found, Refused> {
    let found = context.sandboxes.find(owner, bare(id)).await?;
    match found.record.status {
        Status::Running | Status::Paused => Ok(found),
        Status::Stopped | Status::Error => Err(Refused::not_found(format!("Sandbox \"{id}\" doesn't exist any more"))),
    }
}

/// An id without the client's.
pub(super) fn bare(id: &str) -> &str {
    id.split_once('-').map_or(id, |(id, _)| id)
}

/// A template's name without a tag that stands for the template itself.
pub(super) fn template_name(name: &str) -> &str {
    [":default", ":latest"].iter().find_map(|tag| name.strip_suffix(tag)).unwrap_or(name)
}

/// Seconds that can be.
pub(super) fn seconds(name: &str, wanted: Option<i64>, default: u32) -> Result<u32, Refused> {
    let Some(wanted) = wanted else { return Ok(default) };
    let refused = |_| Refused::bad_request(format!("{name} is {wanted}: it is a number of seconds from 0 on"));
    u32::try_from(wanted).map_err(refused)
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refused> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let is_good = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    match key.to_str() {
        Ok(key) if (1..=255).contains(&key.len()) && key.bytes().all(|byte| is_good(&byte)) => Ok(Some(key.to_owned())),
        _ => Err(Refused::bad_request("Idempotency-Key has 1 to 255 small letters, digits and hyphens")),
    }
}

fn status(state: &str) -> Result<Status, Refused> {
    match state {
        "running" => Ok(Status::Running),
        "paused" => Ok(Status::Paused),
        other => Err(Refused::bad_request(format!("state is {other:?}: it is `running` or `paused`"))),
    }
}

fn of_rfc3339(text: &str) -> Result<i64, Refused> {
    let at = OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339);
    let at = at.map_err(|error| Refused::bad_request(format!("{text:?} is no time of RFC 3339: {error}")))?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| Refused::bad_request(format!("{text:?} never is")))
}

fn of_token(token: &str) -> Result<(i64, String), Refused> {
    let parsed = token.split_once('-').and_then(|(at_ms, id)| Some((at_ms.parse().ok()?, id.to_owned())));
    parsed.ok_or_else(|| Refused::bad_request("nextToken is none that this server has given"))
}

impl NewSandbox {
    fn wanted(self, timeout_default_sec: u32) -> Result<Wanted, Refused> {
        let wakes = self.auto_resume.is_some_and(|auto| auto.enabled);
        if self.auto_pause_memory == Some(false) {
            return Err(unbuilt("a pause of files alone (autoPauseMemory)"));
        }
        if self.iam.is_some_and(|iam| !iam.is_null()) {
            return Err(unbuilt("identity tokens (iam)"));
        }
        if self.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
            return Err(unbuilt("volumes (volumeMounts)"));
        }
        Ok(Wanted {
            template: self.template_id,
            timeout_sec: seconds("timeout", self.timeout, timeout_default_sec)?,
            pauses_at_timeout: self.auto_pause.unwrap_or_default(),
            envs: self.env_vars.unwrap_or_default().into_iter().collect(),
            asked: Asked {
                labels: self.metadata.unwrap_or_default(),
                timeout_from: TimeoutFrom::Start,
                wakes,
                network: self.network.unwrap_or_default().wanted(self.allow_internet_access)?,
                disk_mib: 0,
                built_as: None,
            },
            ..Wanted::default()
        })
    }
}

impl SandboxBody {
    pub(super) fn new(context: &Context, found: &Found) -> Self {
        let (id, secret) = (&found.record.id, &context.secret);
        let needs_token = found.record.asked.network.inbound.needs_token;
        Self {
            template_id: found.record.template_name().to_owned(),
            sandbox_id: id.to_string(),
            client_id: CLIENT_ID,
            alias: found.record.template_name().to_owned(),
            envd_version: wrenn_envd::PROTOCOL_VERSION,
            envd_access_token: secret.token(id, Purpose::Agent),
            traffic_access_token: needs_token.then(|| secret.token(id, Purpose::Traffic)),
            domain: context.domain.as_deref().map(str::to_owned),
        }
    }
}

impl From<Found> for ListedBody {
    fn from(Found { record, ends_at, .. }: Found) -> Self {
        let is_paused = record.status == Status::Paused;
        Self {
            sandbox_id: record.id.to_string(),
            client_id: CLIENT_ID,
            alias: record.template_name().to_owned(),
            template_id: record.template_name().to_owned(),
            envd_version: wrenn_envd::PROTOCOL_VERSION,
            started_at: rfc3339(of_ms(record.started_at_ms)),
            end_at: match ends_at {
                Some(at) => rfc3339(at.into()),
                None if is_paused => rfc3339(of_ms(record.updated_at_ms)),
                None => rfc3339(of_ms(record.started_at_ms + 1000 * i64::from(record.timeout_sec))),
            },
            cpu_count: record.vcpus,
            memory_mb: record.memory_mib,
            disk_size_mb: record.asked.disk_mib,
            state: record.status.name(),
            metadata: record.asked.labels,
            volume_mounts: [],
            pause_mode: is_paused.then_some("full"),
        }
    }
}

impl DetailBody {
    fn new(context: &Context, found: Found) -> Self {
        let network = found.record.asked.network.clone();
        let on_timeout = if found.record.pauses_at_timeout { "pause" } else { "kill" };
        Self {
            domain: context.domain.as_deref().map(str::to_owned),
            envd_access_token: context.secret.token(&found.record.id, Purpose::Agent),
            allow_internet_access: network.internet,
            lifecycle: Lifecycle { auto_resume: found.record.asked.wakes, on_timeout },
            network: NetworkBody::from(&network),
            listed: found.into(),
        }
    }
}

const CLIENT_ID: &str = "wrenn";
const TIMEOUT_V1_SEC: u32 = 15;
const TIMEOUT_V2_SEC: u32 = 300;
const PAGE_MAX: u32 = 100;
const LISTED_MAX: usize = 10_000;
