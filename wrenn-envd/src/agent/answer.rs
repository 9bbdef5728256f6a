//! Answers of the plain HTTP side.

use std::error::Error;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::api_error::ApiError;

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// An answer of JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<Response<Body>, ApiError> {
    let text = serde_json::to_vec(value)
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut response = Response::new(full(text.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The answer to a request that is refused: `{code, message}`.
pub(super) fn refused(refusal: &ApiError) -> Response<Body> {
    let body = serde_json::json!({ "code": refusal.status.as_u16(), "message": refusal.message });
    let mut response = json(&body).unwrap_or_else(|_| empty(refusal.status));
    *response.status_mut() = refusal.status;
    response
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
