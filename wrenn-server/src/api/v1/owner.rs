//! Whose request it is.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::api::v1::answer::Refused;
use crate::api::v1::state::Context;
use crate::service::keys;

/// The id of the key that a request was sent with.
#[derive(Debug)]
pub(super) struct Owner(pub(super) String);

impl FromRequestParts<Context> for Owner {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Refused> {
        if !context.needs_key {
            return Ok(Self(NOBODY.to_owned()));
        }
        let key = parts.headers.get("x-api-key").and_then(|value| value.to_str().ok());
        let found = match key {
            Some(key) => keys::check(&*context.store, key).await?,
            None => None,
        };
        match found {
            Some(record) => Ok(Self(record.id)),
            None => Err(Refused::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the request has no key that is good: send one as `X-API-Key`; `wrenn-server keys create NAME` makes one",
            )),
        }
    }
}

/// Whose the sandboxes are of a server without keys.
const NOBODY: &str = "";
