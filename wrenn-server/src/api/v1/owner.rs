//! Whose request it is.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::api::identity::{Unidentified, identify};
use crate::api::state::Context;
use crate::api::v1::answer::Refused;

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
                "unauthorized",
                "the request has no key that is good: send one as `X-API-Key`; `wrenn-server keys create NAME` makes one",
            )),
            Err(Unidentified::ReadsOnly) => {
                Err(Refused::new(StatusCode::FORBIDDEN, "forbidden", "this key may only look: use another one"))
            }
            Err(Unidentified::TooMany(wait)) => Err(Refused::too_many("this key has sent too many requests", wait)),
            Err(Unidentified::Failed(error)) => Err(error.into()),
        }
    }
}
