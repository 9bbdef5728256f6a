//! The routes of `/v1`.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{delete, get, post, put};

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::{commands, files, network, sandboxes, snapshots};

/// Everything of the native API.
pub(crate) fn router() -> Router<Context> {
    Router::new()
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route("/v1/sandboxes/{id}/exec", post(commands::exec))
        .route("/v1/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/v1/sandboxes/{id}/resume", post(sandboxes::resume))
        .route("/v1/sandboxes/{id}/fork", post(sandboxes::fork))
        .route("/v1/sandboxes/{id}/ping", post(sandboxes::ping))
        .route("/v1/sandboxes/{id}/files/read", post(files::read))
        .route("/v1/sandboxes/{id}/files/write", post(files::write).layer(DefaultBodyLimit::disable()))
        .route("/v1/sandboxes/{id}/files/list", post(files::list))
        .route("/v1/sandboxes/{id}/files/mkdir", post(files::make_dir))
        .route("/v1/sandboxes/{id}/files/remove", post(files::remove))
        .route("/v1/snapshots", post(snapshots::create).get(snapshots::list))
        .route("/v1/snapshots/{name}", delete(snapshots::delete))
        .route("/v1/sandboxes/{id}/network", put(network::put))
        .route("/healthz", get(|| async { "ok\n" }))
}

/// What has no route.
pub(crate) async fn no_route() -> impl IntoResponse {
    Refused::new(StatusCode::NOT_FOUND, "not_found", "there is no such route: docs/server.md has those that there are")
}

/// What has a route, and no such method.
pub(crate) async fn no_method() -> impl IntoResponse {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route has no such method: see `Allow`")
}
