//! The routes of E2B's API: those of the first clients, and those of today's.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{any, get, post, put};

use crate::api::e2b::{
    builds, events, life, logs, metrics, sandboxes, snapshots, tag_groups, tags, templates, unbuilt, uploads, webhooks,
};
use crate::api::state::Context;

/// Everything that E2B's clients ask for.
pub(crate) fn router() -> Router<Context> {
    Router::new()
        .route("/sandboxes", post(sandboxes::create_v1).get(sandboxes::list_v1))
        .route("/v2/sandboxes", post(sandboxes::create_v2).get(sandboxes::list_v2))
        .route("/sandboxes/metrics", get(metrics::of_many))
        .route("/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route("/sandboxes/{id}/pause", post(life::pause))
        .route("/sandboxes/{id}/connect", post(life::connect_v1))
        .route("/v2/sandboxes/{id}/connect", post(life::connect_v2))
        .route("/sandboxes/{id}/resume", post(life::resume))
        .route("/sandboxes/{id}/fork", post(life::fork))
        .route("/sandboxes/{id}/snapshots", post(snapshots::create))
        .route("/sandboxes/{id}/timeout", post(life::timeout))
        .route("/sandboxes/{id}/refreshes", post(life::refresh))
        .route("/sandboxes/{id}/network", put(life::network))
        .route("/sandboxes/{id}/metrics", get(metrics::of_one))
        .route("/sandboxes/{id}/logs", get(logs::v1))
        .route("/v2/sandboxes/{id}/logs", get(logs::v2))
        .route("/snapshots", get(snapshots::list))
        .route("/events/sandboxes", get(events::of_all))
        .route("/events/sandboxes/{id}", get(events::of_one))
        .route("/events/webhooks", get(webhooks::list).post(webhooks::create))
        .route("/events/webhooks/{id}", get(webhooks::get).patch(webhooks::patch).delete(webhooks::delete))
        .merge(templates_router())
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
}

fn templates_router() -> Router<Context> {
    Router::new()
        .route("/templates", get(templates::list).post(builds::request))
        .route("/v2/templates", get(templates::list).post(builds::request))
        .route("/v3/templates", post(builds::request))
        .route("/default-templates", get(templates::list))
        .route("/templates/tags", post(tags::assign).delete(tags::remove))
        .route("/templates/aliases/{alias}", get(templates::alias))
        .route(
            "/templates/{id}",
            get(templates::get).delete(templates::delete).patch(templates::patch).post(unbuilt::first_builds),
        )
        .route("/templates/{id}/builds/{build}", post(unbuilt::first_builds))
        .route("/v2/templates/{id}", axum::routing::patch(templates::patch))
        .route("/templates/{id}/tags", get(tags::list))
        .route("/templates/{id}/tags/count", get(tags::count))
        .route("/templates/{id}/tags/exists", get(tags::exists))
        .route("/templates/{id}/tags/groups", get(tag_groups::groups))
        .route("/templates/{id}/tags/{tag}/assignments", get(tag_groups::assignments))
        .route("/templates/{id}/files/{hash}", get(uploads::link).put(uploads::take).layer(DefaultBodyLimit::disable()))
        .route("/v2/templates/{id}/builds/{build}", post(builds::start))
        .route("/templates/{id}/builds/{build}/status", get(builds::status))
        .route("/templates/{id}/builds/{build}/logs", get(builds::logs))
        .route("/volumes", any(unbuilt::volumes))
        .route("/volumes/{id}", any(unbuilt::volumes))
        .route("/secrets", any(unbuilt::secrets))
        .route("/secrets/{id}", any(unbuilt::secrets))
}
