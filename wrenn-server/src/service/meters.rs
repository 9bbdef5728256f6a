//! What is counted of the work with sandboxes, in the words of Prometheus.
//!
//! Every label has few values: no path, no sandbox and nothing else that a client chooses is one.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::service::error::{Blame, ServiceError};

/// Seconds, in a counter.
pub(crate) type Seconds = Counter<f64, AtomicU64>;
/// Labels by their names.
pub(crate) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What is counted of the work with sandboxes since the server began.
#[derive(Debug)]
pub struct Meters {
    registry: Registry,
    works: Family<Labels<2>, Counter>,
    work_seconds: Family<Labels<1>, Histogram>,
    /// What waits for its turn to have a part of the machine.
    pub(super) waiting: Gauge,
    refusals: Family<Labels<1>, Counter>,
    /// Sandboxes whose time was over.
    pub(super) expiries: Counter,
    ends: Family<Labels<1>, Counter>,
    /// Builds of templates that have begun.
    pub(super) builds_started: Counter,
    builds: Family<Labels<1>, Counter>,
    build_seconds: Histogram,
    egress_refusals: Family<Labels<1>, Counter>,
    /// Page faults of guests that were served from their snapshots.
    pub(super) page_faults: Counter,
    /// Bytes of guests' memory that were read from their snapshots.
    pub(super) restored_bytes: Counter,
    vcpu_seconds: Family<[(&'static str, String); 1], Seconds>,
    memory_mib_seconds: Family<[(&'static str, String); 1], Seconds>,
    carried: Family<Labels<1>, Counter>,
    carried_bytes: Family<Labels<1>, Counter>,
}

/// Work with a sandbox that is counted and timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One is made of a template.
    Create,
    /// One goes to disk.
    Pause,
    /// One comes from there.
    Resume,
    /// Copies are made of one.
    Fork,
    /// A template is made of one.
    Snapshot,
    /// One is ended by its owner.
    Kill,
    /// A command runs in one.
    Exec,
}

/// Which way bytes go between a client and the port of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the sandbox.
    In,
    /// From the sandbox.
    Out,
}

impl Default for Meters {
    fn default() -> Self {
        let work_seconds = Family::new_with_constructor((|| Histogram::new(WORK_SECONDS)) as fn() -> Histogram);
        let mut this = Self {
            registry: Registry::with_prefix("wrenn"),
            works: Family::default(),
            work_seconds,
            waiting: Gauge::default(),
            refusals: Family::default(),
            expiries: Counter::default(),
            ends: Family::default(),
            builds_started: Counter::default(),
            builds: Family::default(),
            build_seconds: Histogram::new(BUILD_SECONDS),
            egress_refusals: Family::default(),
            page_faults: Counter::default(),
            restored_bytes: Counter::default(),
            vcpu_seconds: Family::default(),
            memory_mib_seconds: Family::default(),
            carried: Family::default(),
            carried_bytes: Family::default(),
        };
        this.register();
        this.begin_at_zero();
        this
    }
}

impl Meters {
    fn register(&mut self) {
        let all = &mut self.registry;
        all.register("operations", "Work with sandboxes that has ended, by how it ended", self.works.clone());
        all.register(
            "operation_duration_seconds",
            "How long work with sandboxes took that succeeded, with the wait for its turn",
            self.work_seconds.clone(),
        );
        all.register("admission_queue", "Sandboxes that wait for their turn to run", self.waiting.clone());
        all.register("admission_refusals", "Sandboxes that were not let run, by the reason", self.refusals.clone());
        all.register("expiries", "Sandboxes whose time was over", self.expiries.clone());
        all.register("ends", "Sandboxes that ended and were not paused, by the reason", self.ends.clone());
        all.register("builds_started", "Builds of templates that have begun", self.builds_started.clone());
        all.register("builds", "Builds of templates that have ended, by how they ended", self.builds.clone());
        all.register(
            "build_duration_seconds",
            "How long builds took that succeeded, with the wait for their turn",
            self.build_seconds.clone(),
        );
        all.register(
            "egress_refusals",
            "What policies refused to sandboxes, by the reason",
            self.egress_refusals.clone(),
        );
        all.register("page_faults", "Page faults served from snapshots", self.page_faults.clone());
        all.register("restored_bytes", "Guests' memory that was read from snapshots", self.restored_bytes.clone());
        all.register(
            "usage_vcpu_seconds",
            "Virtual processors times running seconds, by key",
            self.vcpu_seconds.clone(),
        );
        all.register(
            "usage_memory_mib_seconds",
            "MiB of memory times running seconds, by key",
            self.memory_mib_seconds.clone(),
        );
        all.register(
            "proxied_requests",
            "Requests for ports of sandboxes, by whether they got there",
            self.carried.clone(),
        );
        all.register("proxied_bytes", "Bodies and streams to and from ports of sandboxes", self.carried_bytes.clone());
    }

    /// Has what may happen be told as zero before it does, so that a rate of it is one.
    fn begin_at_zero(&self) {
        for work in Work::ALL {
            for outcome in ["ok", "refused", "failed"] {
                self.works.get_or_create(&[("operation", work.name()), ("outcome", outcome)]).inc_by(0);
            }
            drop(self.work_seconds.get_or_create_owned(&[("operation", work.name())]));
        }
        for reason in ["too_large", "limit", "stored", "full"] {
            self.refusals.get_or_create(&[("reason", reason)]).inc_by(0);
        }
        for reason in ["killed", "expired", "vm_ended", "broken"] {
            self.ends.get_or_create(&[("reason", reason)]).inc_by(0);
        }
        for outcome in ["ready", "error", "cancelled"] {
            self.builds.get_or_create(&[("outcome", outcome)]).inc_by(0);
        }
        for reason in ["local", "private", "denied", "name", "limit"] {
            self.egress_refusals.get_or_create(&[("reason", reason)]).inc_by(0);
        }
        for outcome in ["reached", "unreached"] {
            self.carried.get_or_create(&[("outcome", outcome)]).inc_by(0);
        }
        self.carried_bytes(Direction::In);
        self.carried_bytes(Direction::Out);
    }

    /// What is counted, to be told.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Does some work, and counts it. Work that is cancelled is not counted.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn time<T>(
        &self,
        work: Work,
        doing: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let began = Instant::now();
        let done = doing.await;
        let outcome = match done.as_ref().map_err(ServiceError::blame) {
            Ok(_) => {
                self.work_seconds.get_or_create(&[("operation", work.name())]).observe(began.elapsed().as_secs_f64());
                "ok"
            }
            Err(Blame::Client) => "refused",
            Err(Blame::Time) => "timed_out",
            Err(Blame::Server) => "failed",
        };
        self.works.get_or_create(&[("operation", work.name()), ("outcome", outcome)]).inc();
        done
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn ended(&self, reason: &'static str) {
        self.ends.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a build that has made its template.
    pub(super) fn built(&self, took: Duration) {
        self.build_seconds.observe(took.as_secs_f64());
        self.builds.get_or_create(&[("outcome", "ready")]).inc();
    }

    pub(super) fn not_built(&self, outcome: &'static str) {
        self.builds.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(super) fn egress_refused(&self, reason: &'static str) {
        self.egress_refusals.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn used(&self, key: &str, vcpus: u32, memory_mib: u32, running: Duration) {
        let key = if key.is_empty() { NO_KEY } else { key };
        let (labels, seconds) = ([("key", key.to_owned())], running.as_secs_f64());
        self.vcpu_seconds.get_or_create(&labels).inc_by(f64::from(vcpus) * seconds);
        self.memory_mib_seconds.get_or_create(&labels).inc_by(f64::from(memory_mib) * seconds);
    }

    pub(crate) fn carried(&self, was_reached: bool) {
        let outcome = if was_reached { "reached" } else { "unreached" };
        self.carried.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// The counter of the bytes that go one way.
    pub(crate) fn carried_bytes(&self, direction: Direction) -> Counter {
        let direction = match direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        self.carried_bytes.get_or_create_owned(&[("direction", direction)])
    }
}

impl Work {
    const ALL: [Self; 7] =
        [Self::Create, Self::Pause, Self::Resume, Self::Fork, Self::Snapshot, Self::Kill, Self::Exec];

    fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Fork => "fork",
            Self::Snapshot => "snapshot",
            Self::Kill => "kill",
            Self::Exec => "exec",
        }
    }
}

/// From the resume of a small guest to a command that takes its time.
const BUILD_SECONDS: [f64; 10] = [0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
const WORK_SECONDS: [f64; 14] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Whose the use is of a server without keys. No key's id: those have digits alone.
const NO_KEY: &str = "none";

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_text::encode;

    use super::*;

    #[tokio::test]
    async fn work_is_counted_by_how_it_ended() {
        let meters = Meters::default();
        let refused = async { Err::<(), _>(ServiceError::Closing) };
        meters.time(Work::Create, async { Ok(()) }).await.expect("it did");
        meters.time(Work::Create, refused).await.expect_err("it did not");
        meters.used("", 2, 512, Duration::from_millis(1500));
        let mut text = String::new();
        encode(&mut text, meters.registry()).expect("a text");
        for line in [
            r#"wrenn_operations_total{operation="create",outcome="ok"} 1"#,
            r#"wrenn_operations_total{operation="create",outcome="refused"} 1"#,
            r#"wrenn_operation_duration_seconds_count{operation="create"} 1"#,
            r#"wrenn_usage_vcpu_seconds_total{key="none"} 3.0"#,
            r#"wrenn_usage_memory_mib_seconds_total{key="none"} 768.0"#,
        ] {
            assert!(text.lines().any(|is| is == line), "{line} is not in:\n{text}");
        }
    }
}
