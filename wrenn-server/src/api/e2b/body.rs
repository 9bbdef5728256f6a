//! A request's body: JSON of a known shape, whose other fields are nobody's business.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::api::e2b::answer::Refused;

/// JSON as a `T`, and its SHA-256. No body is an empty object.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T, pub(super) Vec<u8>);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let bytes = match timeout(BODY_MAX, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(rejection)) => return Err(Refused::new(rejection.status(), rejection.body_text())),
            Err(_elapsed) => return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "The body did not come in time")),
        };
        let text = if bytes.is_empty() { b"{}" } else { &*bytes };
        let value = serde_json::from_slice(text);
        let value = value.map_err(|error| Refused::bad_request(format!("Error when parsing request: {error}")))?;
        Ok(Self(value, Sha256::digest(&bytes).to_vec()))
    }
}

/// One MiB by the slowest of lines.
const BODY_MAX: Duration = Duration::from_secs(30);
