//! Each request has a name, and the log's lines about it have that name, down to those of `wrenn-core`.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument as _;

use crate::ops::request_id::{self, REQUEST_ID};
use crate::ops::state::Ops;
use crate::ops::traffic::Traffic;
use crate::service::carried::Carried;

/// Follows a request to its answer.
pub(crate) async fn follow(State(ops): State<Ops>, request: Request, next: Next) -> Response {
    let id = request_id::of(request.headers());
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default());
    #[cfg(feature = "otel")]
    crate::ops::spans::continue_trace(&span, request.headers());
    let work = async {
        let mut followed = Followed::of(&request, ops.traffic);
        let mut response = next.run(request).await;
        followed.answered(&mut response, &id);
        response
    };
    work.instrument(span).await
}

/// A request that is under way. It is reported when this is dropped, also where its client has gone away.
#[derive(Debug)]
struct Followed {
    traffic: Traffic,
    began: Instant,
    method: &'static str,
    /// The pattern of its route. A path itself may be anything.
    route: String,
    /// `None` while there is none.
    status: Option<StatusCode>,
}

impl Followed {
    fn of(request: &Request, traffic: Traffic) -> Self {
        let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
        let method = method(request.method().as_str());
        Self { traffic, began: Instant::now(), method, route, status: None }
    }

    fn answered(&mut self, response: &mut Response, id: &HeaderValue) {
        // What a guest's server calls its answer stays.
        response.headers_mut().entry(REQUEST_ID).or_insert_with(|| id.clone());
        if response.extensions_mut().remove::<Carried>().is_some() {
            PORT.clone_into(&mut self.route);
        }
        self.status = Some(response.status());
    }

    /// One line. It has no path and no query, which may have tokens in them.
    fn log(&self, took: Duration) {
        let Self { method, route, status, .. } = self;
        let (took_ms, status) = (took.as_millis(), status.map(|status| status.as_u16()));
        match status {
            // That a guest's server fails, or is not there yet, is the guest's matter.
            Some(500..) if route != PORT => tracing::warn!(method, route, status, took_ms, "a request failed here"),
            Some(_) => tracing::debug!(method, route, status, took_ms, "a request was answered"),
            None => tracing::debug!(method, route, took_ms, "a client went away before its answer"),
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.traffic.answered(&self.route, self.method, self.status.map(|status| status.as_u16()), took);
        self.log(took);
    }
}

/// A method may be any word.
fn method(name: &str) -> &'static str {
    METHODS.into_iter().find(|known| *known == name).unwrap_or("other")
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
/// The route of what was carried to the port of a sandbox.
const PORT: &str = "port";
/// The route of what has none.
const NO_ROUTE: &str = "none";
