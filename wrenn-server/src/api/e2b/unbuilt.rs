//! What is not served yet, and says so.

use axum::http::StatusCode;

use crate::api::e2b::answer::Refused;

pub(super) async fn volumes() -> Refused {
    unbuilt("volumes")
}

pub(super) async fn secrets() -> Refused {
    unbuilt("secrets")
}

pub(super) fn unbuilt(what: &str) -> Refused {
    Refused::new(StatusCode::NOT_IMPLEMENTED, format!("wrenn does not serve {what} yet"))
}
