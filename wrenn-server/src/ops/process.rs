//! What this program itself takes of its machine, in the words of Prometheus' own libraries.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What this program itself takes, as of the last [`refresh`](Self::refresh).
#[derive(Debug, Default)]
pub(super) struct Process {
    resident_bytes: Gauge,
    open_fds: Gauge,
}

impl Process {
    pub(super) fn register(&self, all: &mut Registry) {
        let resident = self.resident_bytes.clone();
        all.register("process_resident_memory_bytes", "Memory of the server, without its guests' VMMs", resident);
        all.register("process_open_fds", "Open descriptors of the server", self.open_fds.clone());
    }

    pub(super) fn refresh(&self) {
        if let Some(bytes) = resident_bytes() {
            self.resident_bytes.set(bytes);
        }
        if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
            self.open_fds.set(i64::try_from(fds.count()).unwrap_or(i64::MAX));
        }
    }
}

/// As `status` has it, see proc(5).
fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kib.checked_mul(1024)
}
