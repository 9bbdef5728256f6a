//! Whether a load balancer should send requests here.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::ops::state::Ops;
use crate::service::readiness::Unready;

/// Whether the server is ready, and what it lacks.
#[derive(Debug, Serialize)]
pub(super) struct ReadyBody {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lacks: Vec<Lack>,
}

#[derive(Debug, Serialize)]
struct Lack {
    code: &'static str,
    message: &'static str,
}

pub(super) async fn get(State(ops): State<Ops>) -> (StatusCode, Json<ReadyBody>) {
    let lacks: Vec<Lack> = ops.readiness.lacks().await.into_iter().map(Into::into).collect();
    let ready = lacks.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ReadyBody { ready, lacks }))
}

impl From<Unready> for Lack {
    fn from(unready: Unready) -> Self {
        match unready {
            Unready::Leaving => Self { code: "leaving", message: "the server is about to end: use another one" },
            Unready::Records => Self {
                code: "records",
                message: "the records do not answer: look at the database, and at this server's log for why",
            },
        }
    }
}
