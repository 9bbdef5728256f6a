//! Errors as E2B's clients get them.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use wrenn_core::{AgentError, Error};

use crate::service::error::ServiceError;

/// An error, as it is sent.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
    /// After how many seconds the client is to try again; `None` where that is no use.
    retry_after_sec: Option<u32>,
}

/// An error within an answer, or as one.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody {
    code: u16,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None, retry_after_sec: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(super) fn code(self, error_code: &'static str) -> Self {
        Self { error_code: Some(error_code), ..self }
    }

    pub(super) fn retry_after(self, seconds: u32) -> Self {
        Self { retry_after_sec: Some(seconds), ..self }
    }

    pub(super) fn into_body(self) -> ErrorBody {
        ErrorBody { code: self.status.as_u16(), message: self.message, error_code: self.error_code }
    }
}

impl From<ServiceError> for Refused {
    fn from(error: ServiceError) -> Self {
        let message = crate::api::text::chain(&error);
        match error {
            ServiceError::NoSandbox { id } => {
                Self::not_found(format!("Sandbox \"{id}\" doesn't exist or you don't have access to it"))
            }
            ServiceError::Over { id, .. } => Self::not_found(format!("Sandbox \"{id}\" doesn't exist any more")),
            ServiceError::NoSnapshot { name } => Self::not_found(format!("template '{name}' not found")),
            ServiceError::NoEvent { .. } | ServiceError::NoWebhook { .. } | ServiceError::NoBuild { .. } => {
                Self::not_found(message)
            }
            ServiceError::Closing => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).code("sandbox_capacity_unavailable").retry_after(5)
            }
            ServiceError::LimitReached { .. } => Self::new(StatusCode::TOO_MANY_REQUESTS, message),
            ServiceError::StoredLimit { .. } => Self::new(StatusCode::INSUFFICIENT_STORAGE, message),
            ServiceError::TooLarge { .. }
            | ServiceError::TooMany { .. }
            | ServiceError::BadWebhook { .. }
            | ServiceError::NotPublic { .. }
            | ServiceError::BadProxy { .. }
            | ServiceError::BadBuild { .. } => Self::bad_request(message),
            ServiceError::BuildBegun { .. } => Self::conflict(message),
            ServiceError::UploadTooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, message),
            ServiceError::TooSlow => Self::new(StatusCode::REQUEST_TIMEOUT, message),
            ServiceError::Disk(_) => Self::internal(StatusCode::INSUFFICIENT_STORAGE, &message),
            ServiceError::Full { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).code("sandbox_placement_timeout").retry_after(5)
            }
            ServiceError::RequestMismatch => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, message).code("idempotency_request_mismatch")
            }
            ServiceError::RequestUnderWay => Self::conflict(message).code("idempotency_in_progress").retry_after(1),
            ServiceError::RequestUnknown => Self::conflict(message).code("idempotency_outcome_unknown"),
            ServiceError::Sandbox(error) => Self::of_core(&error, message),
            ServiceError::Store(_) => Self::internal(StatusCode::SERVICE_UNAVAILABLE, &message).retry_after(1),
            ServiceError::Panicked(_) => Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &message),
        }
    }
}

impl Refused {
    fn of_core(error: &Error, message: String) -> Self {
        match error {
            Error::InvalidInput { .. } => Self::bad_request(message),
            Error::NotFound { .. } => Self::not_found(message),
            Error::AlreadyExists { .. } | Error::InvalidState { .. } => Self::conflict(message),
            Error::Agent { source: AgentError::Refused { .. }, .. } => Self::bad_request(message),
            Error::Host { .. } | Error::NoSpace { .. } => {
                Self::internal(StatusCode::SERVICE_UNAVAILABLE, &message).code("sandbox_no_compatible_node")
            }
            _ => Self::internal(StatusCode::INTERNAL_SERVER_ERROR, &message),
        }
    }

    /// What an operator has to know of as well.
    fn internal(status: StatusCode, message: &str) -> Self {
        // What follows may be a guest's console, in which a guest writes what it likes.
        let why = message.lines().next().unwrap_or_default();
        tracing::error!(status = status.as_u16(), ?why, "a request failed");
        Self::new(status, message).code("internal_server_error")
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after_sec);
        let mut response = (status, Json(self.into_body())).into_response();
        let headers = response.headers_mut();
        // Without it clients try some errors again, whatever has happened to the request.
        let should_retry = if retry_after.is_some() { "true" } else { "false" };
        headers.insert(HeaderName::from_static("should-retry"), HeaderValue::from_static(should_retry));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
