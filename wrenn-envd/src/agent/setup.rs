//! `POST /init`: what a guest is told before user code runs.

use std::{
    fs::OpenOptions,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, header::HeaderValue};
use tokio::time::timeout;

use super::{
    answer::{Body, empty},
    api_error::ApiError,
    clock::{self, Decision},
    environment, init,
    mmds::{Metadata, Mmds},
    options::Mode,
    settings::{Proof, Settings},
    sys,
};
use crate::{
    guest_event::GuestEventKind,
    init_request::InitRequest,
    protocol::{ARCHIVES_FEATURE, FEATURES_HEADER, PROTOCOL_VERSION, VERSION_HEADER},
    timestamp::Timestamp,
};

/// A request whose sender may give it.
#[derive(Debug)]
pub(super) struct Order {
    request: InitRequest,
    headers: HeaderMap,
    vouched_hash: Option<String>,
}

impl Order {
    /// Reads a request, and refuses it when its sender may not call.
    ///
    /// Where the headers do not prove it, the body has to be read on trust: that may be had a few times at once, and no
    /// request without it is read.
    pub(super) async fn receive<T>(
        mmds: Option<Mmds>,
        settings: &Mutex<Settings>,
        trust: impl FnOnce() -> Option<T>,
        request: Request<Incoming>,
    ) -> Result<Self, ApiError> {
        let (head, body) = request.into_parts();
        let proof = lock(settings).proof(&head.headers);
        let _trusted = match (proof, mmds) {
            (Proof::Token, _) => None,
            // Nobody vouches for a new token.
            (Proof::None(refusal), None) => return Err(refusal),
            (Proof::NotNeeded | Proof::None(_), _) => Some(trust().ok_or_else(busy)?),
        };
        let metadata = metadata(mmds).await?;
        let body = timeout(BODY_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await.map_err(|_| late())?;
        let body = body.map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
        let parsed = match body.as_ref() {
            [] => Ok(InitRequest::default()),
            text => serde_json::from_slice(text).map_err(|error| ApiError::bad_request(format!("the body: {error}"))),
        };
        let new_token = parsed.as_ref().ok().and_then(|request: &InitRequest| request.access_token.as_deref());
        let hash = metadata.access_token_hash;
        lock(settings).authorize_init(&head.headers, new_token, hash.as_deref())?;
        // What is wrong with the body is nobody's business who may not call.
        let mut request = parsed?;
        refuse_volumes(&request)?;
        request.instance_id = metadata.instance_id.or(request.instance_id);
        request.env_id = metadata.env_id.or(request.env_id);
        refuse_malformed(&request)?;
        Ok(Self { request, headers: head.headers, vouched_hash: hash })
    }

    /// Does all that the request names, and says what the guest came from when it was restored.
    ///
    /// The random generator comes first: what follows may draw from it. The settings come last: a request that fails
    /// half-way leaves the token and the environment as they were.
    pub(super) fn carry_out(self, mode: Mode, settings: &Mutex<Settings>) -> Result<Option<GuestEventKind>, ApiError> {
        let Self { request, headers, vouched_hash } = self;
        let mut settings = lock(settings);
        // Another may have set a token meanwhile.
        settings.authorize_init(&headers, request.access_token.as_deref(), vouched_hash.as_deref())?;
        if mode == Mode::Guest {
            change_guest(&mut settings, &request)?;
        }
        let restored = request.entropy.as_ref().map(|_| request.event.unwrap_or(GuestEventKind::Resumed));
        settings.replace(request);
        Ok(restored)
    }
}

fn lock(settings: &Mutex<Settings>) -> MutexGuard<'_, Settings> {
    settings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the metadata service says. Where there should be one and is none nobody is let in: anybody could be first.
async fn metadata(mmds: Option<Mmds>) -> Result<Metadata, ApiError> {
    let Some(mmds) = mmds else { return Ok(Metadata::default()) };
    mmds.read().await.map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("{error}{source}"))
    })
}

/// The answer to a request that was carried out.
pub(super) fn initialized() -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(PROTOCOL_VERSION));
    response.headers_mut().insert(FEATURES_HEADER, HeaderValue::from_static(ARCHIVES_FEATURE));
    response
}

fn change_guest(settings: &mut Settings, request: &InitRequest) -> Result<(), ApiError> {
    if let Some(entropy) = &request.entropy {
        reseed(entropy).map_err(|error| failed("reseed the random generator", &error))?;
    }
    if let Some(timestamp) = request.timestamp {
        match clock::decide(Timestamp::now(), timestamp, settings.last_timestamp) {
            Decision::Stale => {}
            Decision::Keep => settings.last_timestamp = Some(timestamp),
            Decision::Set(timestamp) => {
                clock::set(timestamp).map_err(|error| failed("set the clock", &error))?;
                settings.last_timestamp = Some(timestamp);
            }
        }
    }
    if let Some(hostname) = &request.hostname {
        init::set_hostname(hostname).map_err(|error| failed("set the host name", &error))?;
    }
    if let Some(nameservers) = &request.nameservers {
        init::set_nameservers(nameservers).map_err(|error| failed("set the name servers", &error))?;
    }
    if let Some(machine_id) = &request.machine_id {
        init::set_machine_id(machine_id).map_err(|error| failed("set the machine id", &error))?;
    }
    if let Some(pem) = request.ca_bundle.as_ref().filter(|pem| !pem.is_empty()) {
        init::set_ca_bundle(pem).map_err(|error| failed("take over caBundle", &error))?;
    }
    Ok(())
}

/// What no process could be started with would fail each of them later, and say nothing of where it came from.
///
/// A user or a directory that is not there is no mistake: it may be made later, and until then calls that need it say so.
fn refuse_malformed(request: &InitRequest) -> Result<(), ApiError> {
    environment::check(request.env_vars.iter().flatten())
        .map_err(|error| ApiError::bad_request(format!("envVars: {error}")))?;
    let texts = [
        ("instanceID", &request.instance_id),
        ("envID", &request.env_id),
        ("defaultUser", &request.default_user),
        ("defaultWorkdir", &request.default_workdir),
    ];
    match texts.iter().find(|(_, text)| text.as_ref().is_some_and(|text| text.contains('\0'))) {
        Some((name, _)) => Err(ApiError::bad_request(format!("{name} holds a NUL"))),
        None => Ok(()),
    }
}

/// A volume that is not there is worse than none: programs would write to the guest's own drive in its place.
fn refuse_volumes(request: &InitRequest) -> Result<(), ApiError> {
    let Some(mount) = request.volume_mounts.iter().flatten().next() else { return Ok(()) };
    let message = format!(
        "{} cannot be mounted on {}: volumes are NFS, and this guest's kernel comes without the modules of its client; leave \
         volumeMounts out, and bring files in by /files",
        mount.nfs_target, mount.path
    );
    Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, message))
}

fn reseed(entropy: &[u8]) -> io::Result<()> {
    if entropy.len() < 32 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "fewer than 32 bytes"));
    }
    sys::reseed_kernel_rng(OpenOptions::new().write(true).open("/dev/urandom")?, entropy)
}

fn failed(what: &str, error: &io::Error) -> ApiError {
    let status = match error.kind() {
        io::ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, format!("{what}: {error}"))
}

fn busy() -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "others are calling /init; call again in a moment")
}

fn late() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, format!("the body is not there within {BODY_MAX:?}"))
}

const BODY_BYTES_MAX: usize = 1 << 20;

/// How long a body may take.
const BODY_MAX: Duration = Duration::from_secs(10);
