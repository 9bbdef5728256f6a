//! How things are with sandboxes and the disk: what is looked up when it is asked for, and not counted as it happens.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::Mutex;

use crate::ops::process::Process;
use crate::service::sandboxes::Sandboxes;

type Number = Gauge<u64, AtomicU64>;

/// How things are, as of the last [`refresh`](Self::refresh).
#[derive(Debug)]
pub(super) struct World {
    sandboxes: Arc<Sandboxes>,
    process: Process,
    by_state: Family<[(&'static str, &'static str); 1], Number>,
    vcpus: Number,
    vcpus_max: Number,
    memory_mib: Number,
    memory_mib_max: Number,
    standbys: Number,
    templates: Number,
    generations: Number,
    stored_bytes: Number,
    free_bytes: Number,
    damaged_records: Number,
    /// When the disk was looked at last. Held meanwhile: whoever else asks waits for that look.
    looked: Mutex<Option<Instant>>,
}

impl World {
    pub(super) fn new(sandboxes: Arc<Sandboxes>) -> Self {
        Self {
            sandboxes,
            process: Process::default(),
            by_state: Family::default(),
            vcpus: Number::default(),
            vcpus_max: Number::default(),
            memory_mib: Number::default(),
            memory_mib_max: Number::default(),
            standbys: Number::default(),
            templates: Number::default(),
            generations: Number::default(),
            stored_bytes: Number::default(),
            free_bytes: Number::default(),
            damaged_records: Number::default(),
            looked: Mutex::default(),
        }
    }

    pub(super) fn register(&self, all: &mut Registry) {
        self.process.register(all);
        all.register("wrenn_sandboxes", "Sandboxes that there are, by state", self.by_state.clone());
        let gauges = [
            ("wrenn_admitted_vcpus", "Virtual processors of what runs", &self.vcpus),
            ("wrenn_capacity_vcpus", "Virtual processors that may run together", &self.vcpus_max),
            ("wrenn_admitted_memory_mib", "Memory of what runs, in MiB", &self.memory_mib),
            ("wrenn_capacity_memory_mib", "Memory that may run together, in MiB", &self.memory_mib_max),
            ("wrenn_standbys", "VMMs that stand by", &self.standbys),
            ("wrenn_templates", "Images, and snapshots with a name", &self.templates),
            ("wrenn_generations", "Generations in the store", &self.generations),
            ("wrenn_stored_bytes", "What the generations take on disk", &self.stored_bytes),
            ("wrenn_free_bytes", "What can still be written to the data directory", &self.free_bytes),
            ("wrenn_damaged_records", "Records of pauses that cannot be read", &self.damaged_records),
        ];
        for (name, help, gauge) in gauges {
            all.register(name, help, gauge.clone());
        }
    }

    /// Looks again. The disk is looked at each [`LOOKED_EACH`] at most.
    pub(super) async fn refresh(&self) {
        let of_state = |state| self.by_state.get_or_create_owned(&[("state", state)]);
        of_state("running").set(number(self.sandboxes.running_count()));
        let admitted = self.sandboxes.admitted();
        self.vcpus.set(admitted.vcpus);
        self.vcpus_max.set(admitted.capacity.vcpus.into());
        self.memory_mib.set(admitted.memory_mib);
        self.memory_mib_max.set(admitted.capacity.memory_mib.into());
        self.process.refresh();
        self.sandboxes.count_runs().await;
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|at| at.elapsed() < LOOKED_EACH) {
            return;
        }
        match self.sandboxes.host_metrics().await {
            Ok(host) => {
                of_state("paused").set(host.paused);
                self.standbys.set(host.standbys);
                self.templates.set(host.templates);
                self.generations.set(host.generations);
                self.stored_bytes.set(host.stored_bytes);
                self.free_bytes.set(host.free_bytes);
                self.damaged_records.set(host.damaged_records);
                *looked = Some(Instant::now());
            }
            Err(error) => tracing::warn!(%error, "the disk cannot be measured: the metrics have what it had before"),
        }
    }
}

fn number(of: usize) -> u64 {
    u64::try_from(of).unwrap_or(u64::MAX)
}

/// It reads each record and the size of each stored file.
const LOOKED_EACH: Duration = Duration::from_secs(10);
