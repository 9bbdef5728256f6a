//! How many requests were answered, how, and how fast.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Requests by their routes, which are patterns and never paths: there are as many as the server has.
#[derive(Debug, Clone)]
pub(super) struct Traffic(Family<Kind, Histogram>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    route: String,
    method: &'static str,
    /// Such as `2xx`; `gone` where the client did not wait for it.
    status: &'static str,
}

impl Default for Traffic {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(SECONDS)))
    }
}

impl Traffic {
    pub(super) fn register(&self, all: &mut Registry) {
        let help = "How long requests took to the head of their answers, by route, method and class of status";
        all.register("wrenn_http_request_duration_seconds", help, self.0.clone());
    }

    pub(super) fn answered(&self, route: &str, method: &'static str, status: Option<u16>, took: Duration) {
        let kind = Kind { route: route.to_owned(), method, status: class(status) };
        self.0.get_or_create(&kind).observe(took.as_secs_f64());
    }
}

fn class(status: Option<u16>) -> &'static str {
    match status {
        None => "gone",
        Some(..200) => "1xx",
        Some(200..300) => "2xx",
        Some(300..400) => "3xx",
        Some(400..500) => "4xx",
        Some(500..) => "5xx",
    }
}

/// From a look into memory to a command that takes its time.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0];
