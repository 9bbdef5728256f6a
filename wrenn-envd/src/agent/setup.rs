//! `POST /init`: what a guest is told before user code runs.

use std::{
    fs::OpenOptions,
    io,
    sync::{Mutex, PoisonError},
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, header::HeaderValue};

use super::{
    Mode,
    api_error::ApiError,
    clock::{self, Decision},
    http::{Body, empty},
    init,
    settings::Settings,
    sys,
};
use crate::{GuestEventKind, InitRequest, PROTOCOL_VERSION, Timestamp, VERSION_HEADER};

/// Does all that the request names, and says what the guest came from when it was restored.
///
/// The random generator comes first: what follows may draw from it. The settings come last: a request that fails half-way
/// leaves the token and the environment as they were.
pub(super) async fn init(
    mode: Mode,
    settings: &Mutex<Settings>,
    request: Request<Incoming>,
) -> Result<Option<GuestEventKind>, ApiError> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
    let request: InitRequest = match body.as_ref() {
        [] => InitRequest::default(),
        text => serde_json::from_slice(text).map_err(|error| ApiError::bad_request(format!("the body: {error}")))?,
    };
    let mut settings = settings.lock().unwrap_or_else(PoisonError::into_inner);
    if mode == Mode::Guest {
        change_guest(&mut settings, &request)?;
    }
    let restored = request.entropy.as_ref().map(|_| request.event.unwrap_or(GuestEventKind::Resumed));
    settings.replace(request);
    Ok(restored)
}

/// The answer to a request that was carried out.
pub(super) fn initialized() -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(PROTOCOL_VERSION));
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
    if let Some(machine_id) = &request.machine_id {
        init::set_machine_id(machine_id).map_err(|error| failed("set the machine id", &error))?;
    }
    Ok(())
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

const BODY_BYTES_MAX: usize = 1 << 20;
