//! What is not served yet, and says so.

use axum::http::StatusCode;

use crate::api::e2b::answer::Refused;

pub(super) async fn volumes() -> Refused {
    unbuilt("volumes")
}

pub(super) async fn secrets() -> Refused {
    unbuilt("secrets")
}

/// The first form of a build was one whose parts a client had pushed to E2B's own registry.
pub(super) async fn first_builds() -> Refused {
    let message =
        "wrenn does not serve builds of images that were pushed beforehand: POST /v3/templates begins one of steps";
    Refused::new(StatusCode::NOT_IMPLEMENTED, message)
}

pub(super) fn unbuilt(what: &str) -> Refused {
    Refused::new(StatusCode::NOT_IMPLEMENTED, format!("wrenn does not serve {what} yet"))
}
