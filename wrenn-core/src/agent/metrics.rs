//! How much a guest uses of its machine, as the guest counts it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::Deserialize;
use wrenn_envd::MetricsResponse;

use crate::agent::client::{AgentClient, Result};
use crate::agent::error::AgentError;
use crate::agent::words::shown;

/// How much a guest uses of its machine, as the guest's kernel counts it.
///
/// The guest may lie about these numbers. For a bill, take what the host counts: [`VmmMetrics`](crate::VmmMetrics).
///
/// ```
/// fn memory_used_percent(guest: &wrenn_core::GuestMetrics) -> u64 {
///     guest.memory_used_bytes * 100 / guest.memory_total_bytes.max(1)
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct GuestMetrics {
    /// When the numbers were taken, by the guest's clock, in whole seconds.
    pub at: SystemTime,
    /// How many processors the guest has.
    pub processors: u32,
    /// How busy the processors were since the last call, in percent of all of them together, 0 to 100.
    pub processor_used_percent: f64,
    /// How long the processors have been busy since the guest was booted, added up; `None` where the image's agent is
    /// too old to tell.
    pub processor_time: Option<Duration>,
    /// The size of the guest's memory, in bytes.
    pub memory_total_bytes: u64,
    /// How much memory programs and the kernel use, without the cache of files, in bytes.
    pub memory_used_bytes: u64,
    /// How much memory holds cached files, in bytes. The guest's kernel frees it when programs need memory.
    pub memory_cache_bytes: u64,
    /// The size of the writable drive, in bytes.
    pub disk_total_bytes: u64,
    /// How much of the writable drive is used, in bytes.
    pub disk_used_bytes: u64,
    /// How much the guest has received by the network without the loopback, in bytes; `None` where the image's agent is
    /// too old to tell.
    pub network_received_bytes: Option<u64>,
    /// How much the guest has sent by the network without the loopback, in bytes; `None` where the image's agent is too
    /// old to tell.
    pub network_sent_bytes: Option<u64>,
}

/// The agent's answer. Fields that an older agent does not know are absent.
#[derive(Debug, Deserialize)]
struct Answer {
    cpu_time_ms: Option<u64>,
    net_received_bytes: Option<u64>,
    net_sent_bytes: Option<u64>,
    #[serde(flatten)]
    rest: MetricsResponse,
}

impl AgentClient {
    /// Asks how much the guest uses now. The call does not count as a use of the guest.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling leaves nothing behind.
    pub(crate) async fn metrics(&self) -> Result<GuestMetrics> {
        let answer = self.quick_call(Method::GET, "/metrics", HeaderMap::new(), Bytes::new()).await?;
        parse(&answer)
    }
}

fn parse(answer: &[u8]) -> Result<GuestMetrics> {
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| AgentError::lost(shown(&error.to_string())))?;
    let rest = answer.rest;
    let since_1970 = Duration::from_secs(u64::try_from(rest.ts).unwrap_or(0));
    Ok(GuestMetrics {
        at: UNIX_EPOCH.checked_add(since_1970).ok_or_else(|| AgentError::lost("a time that cannot be"))?,
        processors: rest.cpu_count,
        processor_used_percent: rest.cpu_used_pct,
        processor_time: answer.cpu_time_ms.map(Duration::from_millis),
        memory_total_bytes: rest.mem_total,
        memory_used_bytes: rest.mem_used,
        memory_cache_bytes: rest.mem_cache,
        disk_total_bytes: rest.disk_total,
        disk_used_bytes: rest.disk_used,
        network_received_bytes: answer.net_received_bytes,
        network_sent_bytes: answer.net_sent_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_agent_does_not_say_is_none_and_what_a_newer_one_adds_is_passed_over() {
        let old =
            parse(br#"{"ts":7,"cpu_count":2,"cpu_used_pct":12.5,"mem_total":9,"mem_used":4,"disk_total":3}"#).unwrap();
        assert_eq!((old.processors, old.processor_used_percent, old.memory_used_bytes), (2, 12.5, 4));
        assert_eq!(old.at, UNIX_EPOCH + Duration::from_secs(7));
        assert_eq!((old.processor_time, old.network_sent_bytes), (None, None));
        let new =
            parse(br#"{"ts":7,"cpu_time_ms":40,"net_received_bytes":5,"net_sent_bytes":6,"what":"ever"}"#).unwrap();
        assert_eq!(new.processor_time, Some(Duration::from_millis(40)));
        assert_eq!((new.network_received_bytes, new.network_sent_bytes), (Some(5), Some(6)));
    }

    #[test]
    fn what_cannot_be_is_an_error_and_no_panic() {
        for answer in ["", "[]", r#"{"cpu_count":-1}"#, r#"{"ts":"now"}"#] {
            assert!(parse(answer.as_bytes()).is_err(), "{answer}");
        }
        assert_eq!(parse(br#"{"ts":-5}"#).unwrap().at, UNIX_EPOCH);
        assert!(parse(br#"{"ts":9223372036854775807}"#).is_ok(), "far away, and no more than that");
    }
}
