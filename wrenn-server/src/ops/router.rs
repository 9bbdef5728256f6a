//! The operator's routes.

use axum::Router;
use axum::routing::get;

use crate::ops::state::Ops;
use crate::ops::{metrics, ready};

/// The operator's routes, to be merged with those of the clients.
pub(crate) fn router(ops: Ops) -> Router {
    Router::new().route("/readyz", get(ready::get)).route("/metrics", get(metrics::get)).with_state(ops)
}
