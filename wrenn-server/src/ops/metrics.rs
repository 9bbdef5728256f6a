//! What the server counts, as Prometheus reads it.

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};

use crate::ops::peer::is_of_this_machine;
use crate::ops::state::Ops;
use crate::service::clock::now_ms;
use crate::service::keys;

/// A request that may read what is counted, which tells of all keys: one of this machine, any where there are no keys, else one
/// with an operator's key.
#[derive(Debug)]
pub(super) struct Reader;

impl FromRequestParts<Ops> for Reader {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, ops: &Ops) -> Result<Self, Self::Rejection> {
        if !ops.needs_key || is_of_this_machine(parts) {
            return Ok(Self);
        }
        let key = keys::sent(&parts.headers).ok_or(NO_KEY)?;
        match keys::check(&*ops.store, key, now_ms()).await {
            Ok(Some(record)) if record.terms.operates => Ok(Self),
            Ok(_) => Err(NO_KEY),
            Err(_) => Err(NO_RECORDS),
        }
    }
}

pub(super) async fn get(State(ops): State<Ops>, _: Reader) -> Response {
    ops.world.refresh().await;
    let mut text = String::new();
    let encoded = encode(&mut text, ops.sandboxes.meters().registry()).and_then(|()| encode(&mut text, &ops.registry));
    match encoded {
        Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(std::fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

const NO_KEY: (StatusCode, &str) = (
    StatusCode::UNAUTHORIZED,
    "metrics tell of all keys: they are for programs of this machine, and for a key of `wrenn-server keys create NAME --operator`\n",
);
const NO_RECORDS: (StatusCode, &str) =
    (StatusCode::SERVICE_UNAVAILABLE, "the key cannot be looked up, since the records do not answer: see /readyz\n");
