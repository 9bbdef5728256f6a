//! What the guest has, and uses of it.

use std::{
    fs,
    sync::{Mutex, PoisonError},
};

use crate::{metrics_response::MetricsResponse, timestamp::Timestamp};

/// Samples the machine; keeps the last processor times, since use is a difference.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    last: Mutex<CpuTimes>,
}

/// In clock ticks since the boot, of all processors together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

impl Metrics {
    pub(super) fn sample(&self) -> MetricsResponse {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let bytes = |key| kibibytes(&meminfo, key).saturating_mul(1024);
        let (mem_total, mem_available) = (bytes("MemTotal:"), bytes("MemAvailable:"));
        let mem_used = mem_total.saturating_sub(mem_available);
        let (disk_total, disk_free) = disk();
        let cpu = cpu_times(&stat);
        let (net_received_bytes, net_sent_bytes) = traffic(&fs::read_to_string("/proc/net/dev").unwrap_or_default());
        MetricsResponse {
            ts: Timestamp::now().unix_nanos() / 1_000_000_000,
            cpu_count: u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1),
            cpu_used_pct: self.cpu_used(cpu),
            mem_total,
            mem_used,
            mem_cache: bytes("Cached:"),
            mem_total_mib: mem_total >> 20,
            mem_used_mib: mem_used >> 20,
            disk_used: disk_total.saturating_sub(disk_free),
            disk_total,
            cpu_time_ms: cpu.busy * TICK_MS,
            net_received_bytes,
            net_sent_bytes,
        }
    }

    fn cpu_used(&self, now: CpuTimes) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (busy, total) = (now.busy.saturating_sub(last.busy), now.total.saturating_sub(last.total));
        *last = now;
        // Hundredths of a per cent fit a `u32` exactly, and so an `f64`.
        let hundredths = (busy.min(total) * 10_000).checked_div(total).unwrap_or(0);
        f64::from(u32::try_from(hundredths).unwrap_or(0)) / 100.0
    }
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal …
fn cpu_times(stat: &str) -> CpuTimes {
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or("")
        .split_ascii_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    let total = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    CpuTimes { busy: total - idle, total }
}

/// What all interfaces but the loopback have received and sent, in bytes. `eth0: BYTES packets errs drop fifo frame
/// compressed multicast BYTES …`
fn traffic(dev: &str) -> (u64, u64) {
    let interfaces = dev.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo");
    interfaces.fold((0, 0), |(received, sent), (_, numbers)| {
        let mut numbers = numbers.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0));
        (received + numbers.next().unwrap_or(0_u64), sent + numbers.nth(7).unwrap_or(0_u64))
    })
}

/// Linux counts a program's time in hundredths of a second, whatever its clock does.
const TICK_MS: u64 = 10;

/// A number of `/proc/meminfo`; 0 where it is not there.
pub(super) fn kibibytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// The root file system's size and what is free of it, in bytes.
fn disk() -> (u64, u64) {
    nix::sys::statvfs::statvfs("/")
        .map_or((0, 0), |stat| (stat.blocks() * stat.fragment_size(), stat.blocks_available() * stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_the_difference_between_two_samples() {
        let metrics = Metrics::default();
        assert_eq!(metrics.cpu_used(cpu_times("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 1 1 1\n")), 20.0);
        assert_eq!(metrics.cpu_used(cpu_times("cpu  40 0 10 140 10 0 0 0 0 0\n")), 30.0);
        assert_eq!(metrics.cpu_used(cpu_times("")), 0.0);
    }

    #[test]
    fn the_loopbacks_traffic_is_nobodys() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0\n  \
                   eth0: 100 2 0 0 0 0 0 0 70 3 0 0\neth1:5 1 0 0 0 0 0 0 6 1\n";
        assert_eq!(traffic(dev), (105, 76));
        assert_eq!(traffic(""), (0, 0));
    }

    #[test]
    fn reads_meminfo() {
        let text = "MemTotal:         2048 kB\nMemAvailable:      512 kB\n";
        assert_eq!((kibibytes(text, "MemTotal:"), kibibytes(text, "Cached:")), (2048, 0));
    }
}
