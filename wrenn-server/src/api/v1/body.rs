//! A request's body: JSON of a known shape, or an error that says what is wrong with it.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::api::v1::answer::Refused;

/// JSON, as a `T`.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        match timeout(BODY_MAX, Json::from_request(request, state)).await {
            Ok(Ok(Json(value))) => Ok(Self(value)),
            Ok(Err(rejection)) => Err(refused(&rejection)),
            Err(_elapsed) => {
                let message = format!("the body did not come within {} seconds: send it at once", BODY_MAX.as_secs());
                Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message))
            }
        }
    }
}

fn refused(rejection: &JsonRejection) -> Refused {
    match rejection {
        // What JSON of another shape lacks is as bad as what is none.
        JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_) => {
            Refused::bad_request(rejection.body_text())
        }
        JsonRejection::MissingJsonContentType(_) => Refused::new(
            rejection.status(),
            "unsupported_media_type",
            "the body has to be JSON: send `Content-Type: application/json`",
        ),
        _ if rejection.status().as_u16() == 413 => {
            Refused::new(rejection.status(), "too_large", "the body is too large: one MiB is the most")
        }
        _ => Refused::bad_request(rejection.body_text()),
    }
}

/// One MiB by the slowest of lines.
const BODY_MAX: Duration = Duration::from_secs(30);
