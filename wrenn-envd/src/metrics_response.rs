use serde::{Deserialize, Serialize};

/// The answer of `GET /metrics`. Sizes are in bytes unless the name says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are E2B's, and say it all")]
pub struct MetricsResponse {
    /// Seconds since 1970, by the guest's clock.
    pub ts: i64,
    pub cpu_count: u32,
    /// Of all processors together, 0 to 100, since the last call.
    pub cpu_used_pct: f64,
    pub mem_total: u64,
    pub mem_used: u64,
    pub mem_cache: u64,
    pub mem_total_mib: u64,
    pub mem_used_mib: u64,
    pub disk_used: u64,
    pub disk_total: u64,
    /// wrenn's own: what all processors together have worked since the guest's boot.
    pub cpu_time_ms: u64,
    /// wrenn's own: what came in by the network since the guest's boot, but by its loopback.
    pub net_received_bytes: u64,
    /// wrenn's own: the same for what went out.
    pub net_sent_bytes: u64,
}
