//! What a page server has done so far.

use std::{
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::{Duration, Instant},
};

use crate::page::PAGE_BYTES_U64;

/// Why a page is put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A thread waits for it, or for one near it.
    Fault,
    /// It is in the working set.
    Prefetch,
    /// All are.
    Population,
}

/// Counts that anybody may read while the server works.
#[derive(Debug)]
pub struct ServeCounters {
    started: Instant,
    total_pages: u64,
    faults: AtomicU64,
    faulted: Installed,
    prefetched: Installed,
    populated: Installed,
    prefetch_late: AtomicU64,
    background_failures: AtomicU64,
    deferred: AtomicU64,
    removed: AtomicU64,
    latency_ns: AtomicU64,
    latency_max_ns: AtomicU64,
    detached: AtomicBool,
    histogram: [AtomicU64; BUCKETS],
}

/// Pages that were put in place for one reason.
#[derive(Debug, Default)]
struct Installed {
    pages: AtomicU64,
    zero_pages: AtomicU64,
}

impl Installed {
    fn bytes(&self) -> u64 {
        self.pages.load(Relaxed).saturating_sub(self.zero_pages.load(Relaxed)) * PAGE_BYTES_U64
    }
}

/// What a restore has cost up to the moment when the report was made.
///
/// A fault's latency is the server's share of it: from the moment its event was read to the moment its page was in
/// place. The kernel's share, a few microseconds to wake the server and the guest, is not in it. Percentiles are the
/// upper ends of the histogram's buckets, so they are up to a quarter too high.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// Faults that were served.
    pub faults: u64,
    /// Pages that were put in place, zeros included.
    pub pages: u64,
    /// How many of them were zeros.
    pub zero_pages: u64,
    /// Bytes that were read from the source and put in place. The sum of the next three.
    pub bytes: u64,
    /// Bytes that were read for a fault, the window around it included.
    pub fault_bytes: u64,
    /// Bytes of the working set that were read ahead.
    pub prefetch_bytes: u64,
    /// Bytes of the rest that were read in the background, or all at once.
    pub populate_bytes: u64,
    /// Pages of the working set, zeros included, that the prefetch put in place before anybody asked.
    pub prefetch_hits: u64,
    /// Pages of the working set that were in place, by a fault, when the prefetch came to them.
    pub prefetch_late: u64,
    /// Chunks that the background could not read, and left to the faults.
    pub background_failures: u64,
    /// Pages that the guest has in all.
    pub total_pages: u64,
    /// Times that the kernel put a page off.
    pub deferred: u64,
    /// Pages that the guest discarded. One that was discarded twice counts twice.
    pub removed_pages: u64,
    /// The mean latency of a fault, in microseconds.
    pub latency_mean_us: f64,
    /// The median.
    pub latency_p50_us: f64,
    /// What 99 in 100 faults stayed under.
    pub latency_p99_us: f64,
    /// The slowest fault.
    pub latency_max_us: f64,
    /// Whether every page was in place and the server has let go of the source, which the guest needs no more. Where the
    /// server has nothing else to do it has ended, too.
    pub detached: bool,
    /// Time since the server was made.
    pub elapsed: Duration,
}

impl ServeCounters {
    pub(crate) fn new(total_pages: u64) -> Self {
        Self {
            started: Instant::now(),
            total_pages,
            faults: AtomicU64::new(0),
            faulted: Installed::default(),
            prefetched: Installed::default(),
            populated: Installed::default(),
            prefetch_late: AtomicU64::new(0),
            background_failures: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
            removed: AtomicU64::new(0),
            latency_ns: AtomicU64::new(0),
            latency_max_ns: AtomicU64::new(0),
            detached: AtomicBool::new(false),
            histogram: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// The counts so far. They are read one after another, so they may be a fault apart.
    #[must_use]
    pub fn report(&self) -> RestoreReport {
        let faults = self.faults.load(Relaxed);
        let max_ns = self.latency_max_ns.load(Relaxed);
        let all = [&self.faulted, &self.prefetched, &self.populated];
        let [fault_bytes, prefetch_bytes, populate_bytes] = all.map(Installed::bytes);
        RestoreReport {
            faults,
            pages: all.iter().map(|installed| installed.pages.load(Relaxed)).sum(),
            zero_pages: all.iter().map(|installed| installed.zero_pages.load(Relaxed)).sum(),
            bytes: fault_bytes + prefetch_bytes + populate_bytes,
            fault_bytes,
            prefetch_bytes,
            populate_bytes,
            prefetch_hits: self.prefetched.pages.load(Relaxed),
            prefetch_late: self.prefetch_late.load(Relaxed),
            background_failures: self.background_failures.load(Relaxed),
            total_pages: self.total_pages,
            deferred: self.deferred.load(Relaxed),
            removed_pages: self.removed.load(Relaxed),
            latency_mean_us: micros(self.latency_ns.load(Relaxed)) / micros(faults.max(1) * 1000),
            latency_p50_us: micros(self.percentile_ns(50).min(max_ns)),
            latency_p99_us: micros(self.percentile_ns(99).min(max_ns)),
            latency_max_us: micros(max_ns),
            detached: self.detached.load(Acquire),
            elapsed: self.started.elapsed(),
        }
    }

    pub(crate) fn count_fault(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.faults.fetch_add(1, Relaxed);
        self.latency_ns.fetch_add(ns, Relaxed);
        self.latency_max_ns.fetch_max(ns, Relaxed);
        self.histogram[bucket_of(ns)].fetch_add(1, Relaxed);
    }

    pub(crate) fn count_installed(&self, origin: Origin, pages: u64, are_zeros: bool) {
        let installed = match origin {
            Origin::Fault => &self.faulted,
            Origin::Prefetch => &self.prefetched,
            Origin::Population => &self.populated,
        };
        installed.pages.fetch_add(pages, Relaxed);
        if are_zeros {
            installed.zero_pages.fetch_add(pages, Relaxed);
        }
    }

    pub(crate) fn count_prefetch_late(&self, pages: u64) {
        self.prefetch_late.fetch_add(pages, Relaxed);
    }

    pub(crate) fn count_background_failure(&self) {
        self.background_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_removed(&self, pages: u64) {
        self.removed.fetch_add(pages, Relaxed);
    }

    pub(crate) fn count_deferred(&self) {
        self.deferred.fetch_add(1, Relaxed);
    }

    /// Whoever reads it finds the source gone, with all that it held.
    pub(crate) fn note_detached(&self) {
        self.detached.store(true, Release);
    }

    fn percentile_ns(&self, percent: u64) -> u64 {
        let counts: Vec<u64> = self.histogram.iter().map(|count| count.load(Relaxed)).collect();
        let rank = (counts.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= rank.max(1)
        });
        bucket.map_or(0, bucket_end_ns)
    }
}

/// Four buckets for each power of two of nanoseconds.
fn bucket_of(ns: u64) -> usize {
    let ns = ns.max(4);
    let power = ns.ilog2();
    let quarter = (ns >> (power - 2)) & 3;
    (power as usize * 4 + usize::try_from(quarter).unwrap_or(0)).min(BUCKETS - 1)
}

fn bucket_end_ns(bucket: usize) -> u64 {
    let (power, quarter) = (bucket / 4, bucket as u64 % 4);
    (4 + quarter + 1) << power.saturating_sub(2)
}

#[expect(clippy::cast_precision_loss, reason = "53 bits of nanoseconds are three months")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// Up to 2^40 ns, which is 18 minutes.
const BUCKETS: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_a_quarter_too_high() {
        let counters = ServeCounters::new(10);
        for us in 1..=100 {
            counters.count_fault(Duration::from_micros(us));
        }
        let report = counters.report();
        assert_eq!((report.faults, report.total_pages, report.latency_max_us), (100, 10, 100.0));
        assert!((report.latency_mean_us - 50.5).abs() < 0.01, "{report:?}");
        assert!((50.0..=62.5).contains(&report.latency_p50_us), "{report:?}");
        assert!((99.0..=100.0).contains(&report.latency_p99_us), "{report:?}");
    }

    #[test]
    fn every_latency_is_inside_of_its_bucket() {
        for ns in (4..10_000).chain([1 << 20, (1 << 30) + 12345]) {
            let end = bucket_end_ns(bucket_of(ns));
            assert!(ns < end && end <= ns + ns / 4 + 2, "{ns} {end}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }
}
