//! One sandbox from its start, or its resume, to its next pause or its end: what it has cost so far.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use wrenn_core::Sandbox;

use crate::service::meters::Meters;
use crate::store::records::SandboxRecord;

/// A sandbox that runs, for as long as this is there.
#[derive(Debug)]
pub(super) struct Run {
    meters: Arc<Meters>,
    owner: String,
    vcpus: u32,
    memory_mib: u32,
    counted: Mutex<Counted>,
}

/// What was added to the meters already.
#[derive(Debug)]
struct Counted {
    until: Instant,
    faults: u64,
    bytes: u64,
}

impl Run {
    /// One begins.
    pub(super) fn of(record: &SandboxRecord, meters: Arc<Meters>) -> Self {
        let counted = Counted { until: Instant::now(), faults: 0, bytes: 0 };
        let SandboxRecord { owner, vcpus, memory_mib, .. } = record.clone();
        Self { meters, owner, vcpus, memory_mib, counted: Mutex::new(counted) }
    }

    /// Adds the time since the last call to what its key has used.
    pub(super) fn count_time(&self) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        self.meters.used(&self.owner, self.vcpus, self.memory_mib, now.saturating_duration_since(counted.until));
        counted.until = now;
    }

    /// Adds what was read of its memory since the last call. A sandbox that is saved at the moment is left for the next call.
    pub(super) async fn count_memory(&self, sandbox: &Sandbox) {
        let Ok(Ok(report)) = timeout(REPORT_MAX, sandbox.restore_report()).await else { return };
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        self.meters.page_faults.inc_by(report.memory.faults.saturating_sub(counted.faults));
        self.meters.restored_bytes.inc_by(report.memory.bytes.saturating_sub(counted.bytes));
        (counted.faults, counted.bytes) = (report.memory.faults, report.memory.bytes);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.count_time();
    }
}

/// It is no reason to keep a pause or a kill waiting.
const REPORT_MAX: Duration = Duration::from_millis(20);
