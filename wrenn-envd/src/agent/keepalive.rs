use std::time::Duration;

use connectrpc::RequestContext;

/// How often a silent stream shows life: what the client asks for in seconds, or E2B's 90 s.
pub(super) fn keepalive(context: &RequestContext) -> Duration {
    let asked = context.header("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(asked.filter(|seconds| *seconds > 0).unwrap_or(90))
}
