//! Whose request it is.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::api::e2b::answer::Refused;
use crate::api::identity::{Unidentified, identify};
use crate::api::state::Context;

/// The id of the key that a request was sent with.
#[derive(Debug)]
pub(super) struct Owner(pub(super) String);

impl FromRequestParts<Context> for Owner {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Refused> {
        match identify(parts, context).await {
            Ok(owner) => Ok(Self(owner)),
            Err(Unidentified::NoKey) => Err(Refused::new(
                StatusCode::UNAUTHORIZED,
                "Invalid API key: make one with `wrenn-server keys create NAME`, and give it as E2B_API_KEY",
            )),
            Err(Unidentified::ReadsOnly) => Err(Refused::new(StatusCode::FORBIDDEN, "This API key may only look")),
            Err(Unidentified::TooMany(wait)) => {
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
                let refused = Refused::new(StatusCode::TOO_MANY_REQUESTS, "This API key has sent too many requests");
                Err(refused.retry_after(seconds))
            }
            Err(Unidentified::Failed(error)) => Err(error.into()),
        }
    }
}
