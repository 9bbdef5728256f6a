//! Whose a request is.

use std::time::Duration;

use axum::http::Method;
use axum::http::request::Parts;

use crate::api::state::Context;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::keys;

/// Why a request is not answered, whatever it wants.
#[derive(Debug)]
pub(in crate::api) enum Unidentified {
    /// It has no key that is good.
    NoKey,
    /// Its key may only look.
    ReadsOnly,
    /// Its key has sent too many, and may send the next one after that.
    TooMany(Duration),
    /// The keys cannot be looked up.
    Failed(ServiceError),
}

/// The id of the key that a request was sent with.
pub(in crate::api) async fn identify(parts: &Parts, context: &Context) -> Result<String, Unidentified> {
    if !context.needs_key {
        return Ok(NOBODY.to_owned());
    }
    let key = keys::sent(&parts.headers).ok_or(Unidentified::NoKey)?;
    let found = keys::check(&*context.store, key, now_ms()).await.map_err(Unidentified::Failed)?;
    let record = found.ok_or(Unidentified::NoKey)?;
    if record.terms.reads_only && !matches!(parts.method, Method::GET | Method::HEAD) {
        return Err(Unidentified::ReadsOnly);
    }
    context.rates.count(&record.id, record.terms.requests_per_sec_max).map_err(Unidentified::TooMany)?;
    Ok(record.id)
}

/// Whose the sandboxes are of a server without keys.
const NOBODY: &str = "";
