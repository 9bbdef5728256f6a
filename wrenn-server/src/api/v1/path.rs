//! What a request's path names.

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use crate::api::v1::answer::Refused;

/// The sandbox of `/v1/sandboxes/{id}`.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SandboxPath {
    /// The sandbox's id: `sb` and 16 hex digits.
    #[param(pattern = "^sb[0-9a-f]{16}$", example = "sb0123456789abcdef")]
    pub(super) id: String,
}

/// The snapshot of `/v1/snapshots/{name}`.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct SnapshotPath {
    /// The snapshot's name.
    #[param(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$", example = "warm")]
    pub(super) name: String,
}

/// The template of `/v1/templates/{name}`.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TemplatePath {
    /// The template's name.
    #[param(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$", example = "app")]
    pub(super) name: String,
}

/// The tag of `/v1/templates/{name}/tags/{tag}`.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TagPath {
    /// The template's name.
    #[param(pattern = "^[a-z0-9][a-z0-9._-]{0,62}$", example = "app")]
    pub(super) name: String,
    /// The tag.
    #[param(pattern = "^[A-Za-z0-9._-]{1,128}$", example = "stable")]
    pub(super) tag: String,
}

/// The webhook of `/v1/webhooks/{id}`.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct WebhookPath {
    /// The webhook's id: `wh` and 32 hex digits.
    #[param(pattern = "^wh[0-9a-f]{32}$")]
    pub(super) id: String,
}

/// The build of `/v1/builds/{id}`.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct BuildPath {
    /// The build's id.
    #[param(pattern = "^[0-9a-f-]{36}$")]
    pub(super) id: String,
}

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        Ok(Self { id: segment(parts, state).await? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SnapshotPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        Ok(Self { name: segment(parts, state).await? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TemplatePath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        Ok(Self { name: segment(parts, state).await? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TagPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let (name, tag) = segment(parts, state).await?;
        Ok(Self { name, tag })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WebhookPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        Ok(Self { id: segment(parts, state).await? })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for BuildPath {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        Ok(Self { id: segment(parts, state).await? })
    }
}

/// What the path has of names, decoded.
async fn segment<T: DeserializeOwned + Send, S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<T, Refused> {
    let found = Path::<T>::from_request_parts(parts, state).await;
    found.map(|Path(segment)| segment).map_err(|rejection| {
        // Nothing has such a name.
        Refused::new(StatusCode::NOT_FOUND, "not_found", format!("the path cannot be read: {}", rejection.body_text()))
    })
}
