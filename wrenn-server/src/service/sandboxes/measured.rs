//! What is measured of all sandboxes together.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use wrenn_core::{Exit, HostEventKind, HostMetrics, Refusal};

use crate::service::admission::Admitted;
use crate::service::error::ServiceError;
use crate::service::meters::Meters;
use crate::service::sandboxes::{Kept, Sandboxes, lock};

impl Sandboxes {
    /// What is counted of the work with them.
    #[must_use]
    pub fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }

    /// How many run.
    #[must_use]
    pub fn running_count(&self) -> usize {
        lock(&self.running).len()
    }

    /// What those that run were given, and what there is.
    #[must_use]
    pub fn admitted(&self) -> Admitted {
        self.admission.admitted()
    }

    /// What the host has on disk. It reads the disk.
    ///
    /// # Errors
    /// Those of [`Host::metrics`](wrenn_core::Host::metrics).
    pub async fn host_metrics(&self) -> Result<HostMetrics, ServiceError> {
        Ok(self.host.metrics().await?)
    }

    /// Brings the meters up to now: the time of those that run, and the memory that they have read.
    pub async fn count_runs(&self) {
        let running: Vec<Kept> = lock(&self.running).values().cloned().collect();
        for Kept { sandbox, run, .. } in running {
            run.count_time();
            run.count_memory(&sandbox).await;
        }
    }

    /// Counts what happens by itself, until it is dropped. Of one that ends by itself, what it has read of its memory since
    /// the last quarter of a minute is not counted.
    pub async fn count(self: Arc<Self>) {
        let (mut events, mut refusals) = (self.host.events(), self.host.refusals());
        let mut ticks = interval(COUNTED_EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.count_runs().await,
                Some(event) = events.next() => match event.map(|event| event.kind) {
                    Ok(HostEventKind::Expired) => {
                        self.meters.expiries.inc();
                    }
                    Ok(HostEventKind::Ended { exit }) => self.meters.ended(end(&exit)),
                    Ok(_) => {}
                    Err(missed) => tracing::warn!(%missed, "some ends of sandboxes are not counted"),
                },
                Some(refusal) = refusals.next() => match refusal {
                    Ok(refusal) => self.meters.egress_refused(reason(&refusal.refused.refusal)),
                    Err(missed) => tracing::debug!(%missed, "some refusals are not counted"),
                },
            }
        }
    }
}

fn end(exit: &Exit) -> &'static str {
    match exit {
        Exit::Paused => "paused",
        Exit::Killed => "killed",
        Exit::Dropped => "dropped",
        Exit::Expired => "expired",
        Exit::NotPaused { .. } => "not_paused",
        Exit::VmEnded { .. } => "vm_ended",
        Exit::Broken { .. } => "broken",
        _ => "other",
    }
}

fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Local => "local",
        Refusal::Private => "private",
        Refusal::Denied(_) => "denied",
        Refusal::Name => "name",
        Refusal::NoDnsServer => "no_dns_server",
        Refusal::Limit => "limit",
        Refusal::NotByProxy => "not_by_proxy",
        Refusal::Proxy { .. } => "proxy",
        _ => "other",
    }
}

const COUNTED_EACH: Duration = Duration::from_secs(15);
