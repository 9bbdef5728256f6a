//! Every route of the server.

use axum::Router;
use axum::extract::DefaultBodyLimit;

use crate::api::state::Context;
use crate::api::{e2b, v1};

/// Everything that is answered.
pub(crate) fn router(context: Context) -> Router {
    v1::router::router()
        .merge(e2b::router::router())
        .fallback(v1::router::no_route)
        .method_not_allowed_fallback(v1::router::no_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(context)
}

const BODY_BYTES_MAX: usize = 1 << 20;
