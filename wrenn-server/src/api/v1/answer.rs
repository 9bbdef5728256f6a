//! Errors as clients get them: a status, a code for programs, and a text that says what to do.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use wrenn_core::{AgentError, Error};

use crate::service::error::ServiceError;

/// An error, as it is sent.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after_sec: Option<u32>,
    /// The protocol that the route speaks in place of HTTP.
    upgrade_to: Option<&'static str>,
}

/// An error within an answer, or as one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody {
    error: ErrorText,
}

/// What was not done, and why.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorText {
    /// For programs.
    #[schema(example = "invalid_state")]
    code: &'static str,
    /// What is wrong, and what to do about it.
    message: String,
}

impl Refused {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after_sec: None, upgrade_to: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_input", message)
    }

    pub(super) fn too_many(message: &str, wait: Duration) -> Self {
        let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
        Self {
            retry_after_sec: Some(seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message)
        }
    }

    /// For a request that asks by HTTP where a WebSocket is.
    pub(super) fn wants_websocket(message: impl Into<String>) -> Self {
        let refused = Self::new(StatusCode::UPGRADE_REQUIRED, "no_websocket", message);
        Self { upgrade_to: Some("websocket"), ..refused }
    }

    /// The code, and the message.
    pub(super) fn into_parts(self) -> (&'static str, String) {
        (self.code, self.message)
    }

    pub(super) fn into_body(self) -> ErrorBody {
        ErrorBody { error: ErrorText { code: self.code, message: self.message } }
    }
}

impl From<ServiceError> for Refused {
    fn from(error: ServiceError) -> Self {
        let message = crate::api::text::chain(&error);
        match error {
            ServiceError::NoSandbox { .. }
            | ServiceError::NoSnapshot { .. }
            | ServiceError::NoEvent { .. }
            | ServiceError::NoWebhook { .. }
            | ServiceError::NoBuild { .. } => Self::new(StatusCode::NOT_FOUND, "not_found", message),
            ServiceError::Over { .. } => Self::new(StatusCode::CONFLICT, "invalid_state", message),
            ServiceError::Closing => Self {
                retry_after_sec: Some(CLOSED_SEC),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "closing", message)
            },
            ServiceError::LimitReached { .. } => Self {
                retry_after_sec: Some(FULL_SEC),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "limit_reached", message)
            },
            ServiceError::StoredLimit { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "storage_limit_reached", message)
            }
            ServiceError::TooLarge { .. }
            | ServiceError::BadWebhook { .. }
            | ServiceError::BadProxy { .. }
            | ServiceError::BadBuild { .. } => Self::bad_request(message),
            ServiceError::NotPublic { .. } => Self::new(StatusCode::FORBIDDEN, "not_public", message),
            ServiceError::TooMany { .. } => Self::new(StatusCode::CONFLICT, "too_many", message),
            ServiceError::BuildBegun { .. } => Self::new(StatusCode::CONFLICT, "invalid_state", message),
            ServiceError::UploadTooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message),
            ServiceError::TooSlow => Self::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message),
            ServiceError::Disk(_) => Self::internal(StatusCode::INSUFFICIENT_STORAGE, "no_space", &message),
            ServiceError::Full { .. } => {
                Self { retry_after_sec: Some(FULL_SEC), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "full", message) }
            }
            ServiceError::RequestMismatch => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "request_mismatch", message),
            ServiceError::RequestUnderWay => {
                Self { retry_after_sec: Some(1), ..Self::new(StatusCode::CONFLICT, "request_under_way", message) }
            }
            ServiceError::RequestUnknown => Self::new(StatusCode::CONFLICT, "request_unknown", message),
            ServiceError::Sandbox(error) => Self::of_core(&error, message),
            ServiceError::Store(_) => Self::internal(StatusCode::SERVICE_UNAVAILABLE, "no_records", &message),
            ServiceError::Panicked(_) => Self::internal(StatusCode::INTERNAL_SERVER_ERROR, "internal", &message),
        }
    }
}

impl Refused {
    fn of_core(error: &Error, message: String) -> Self {
        let status = match error {
            Error::InvalidInput { .. } => StatusCode::BAD_REQUEST,
            Error::NotFound { .. } => StatusCode::NOT_FOUND,
            Error::AlreadyExists { .. } | Error::InvalidState { .. } => StatusCode::CONFLICT,
            Error::CommandTimedOut { .. } => StatusCode::REQUEST_TIMEOUT,
            Error::OutputTooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Error::Agent { source: AgentError::Refused { code, .. }, .. } if code == "already_exists" => {
                return Self::new(StatusCode::CONFLICT, "conflict", message);
            }
            // Such as a file that the guest's user may not read, or a full disk: the guest is well.
            Error::Agent { source: AgentError::Refused { .. }, .. } => {
                return Self::new(StatusCode::CONFLICT, "refused", message);
            }
            Error::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
            Error::Host { .. } => StatusCode::SERVICE_UNAVAILABLE,
            // The guest, its VMM or what is stored.
            _ => StatusCode::BAD_GATEWAY,
        };
        if status.is_server_error() {
            return Self::internal(status, error.code(), &message);
        }
        Self::new(status, error.code(), message)
    }

    /// What an operator has to know of as well.
    fn internal(status: StatusCode, code: &'static str, message: &str) -> Self {
        // What follows may be a guest's console, in which a guest writes what it likes.
        let why = message.lines().next().unwrap_or_default();
        tracing::error!(status = status.as_u16(), code, ?why, "a request failed");
        Self::new(status, code, message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, retry_after, upgrade_to) = (self.status, self.retry_after_sec, self.upgrade_to);
        let mut response = (status, Json(self.into_body())).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(protocol) = upgrade_to {
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(protocol));
        }
        response
    }
}

const CLOSED_SEC: u32 = 5;
const FULL_SEC: u32 = 5;
