//! What is used least goes to disk when the machine's memory runs short.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::service::machine::available_memory_mib;
use crate::service::sandboxes::{Sandboxes, lock};

impl Sandboxes {
    /// Pauses the sandbox that was not used for the longest while the machine has less memory left than that, one after
    /// another, until it is dropped.
    pub(super) async fn relieve(self: Arc<Self>, available_mib_min: u64) {
        let mut ticks = interval(LOOKED_EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match available_memory_mib() {
                Some(mib) if mib < available_mib_min => self.pause_the_idlest(mib).await,
                Some(_) => {}
                None => tracing::warn!("the kernel does not say how much memory is left"),
            }
        }
    }

    async fn pause_the_idlest(self: &Arc<Self>, available_mib: u64) {
        let idlest = {
            let running = lock(&self.running);
            let idlest = running.values().min_by_key(|kept| kept.sandbox.info().last_used_at);
            idlest.map(|kept| kept.sandbox.clone())
        };
        let Some(sandbox) = idlest else { return };
        let id = sandbox.id().clone();
        match self.pause_in_any_case(sandbox).await {
            Ok(()) => tracing::info!(%id, available_mib, "memory is short: the idlest sandbox was paused"),
            Err(error) => tracing::warn!(%id, %error, available_mib, "memory is short, and no pause succeeded"),
        }
    }
}

const LOOKED_EACH: Duration = Duration::from_secs(1);
