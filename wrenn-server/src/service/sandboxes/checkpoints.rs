//! What runs is kept on disk now and then, for the case that the server or the machine ends without warning.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream;
use tokio::time::{MissedTickBehavior, interval};
use wrenn_core::{Sandbox, SandboxId};

use crate::service::sandboxes::{Sandboxes, lock};

impl Sandboxes {
    /// Takes a checkpoint of each sandbox when it has run for so long since its last one, until it is dropped. The guest goes
    /// on meanwhile; one that is being paused, resumed or ended is left alone.
    pub(super) async fn checkpoint(self: Arc<Self>, each: Duration) {
        let mut ticks = interval((each / LOOKED_IN_BETWEEN).max(LOOKED_EACH_MIN));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: HashMap<SandboxId, Instant> = HashMap::new();
        loop {
            ticks.tick().await;
            let running: Vec<Sandbox> = lock(&self.running).values().map(|kept| kept.sandbox.clone()).collect();
            last.retain(|id, _| running.iter().any(|sandbox| sandbox.id() == id));
            let due = running.into_iter().filter(|sandbox| {
                let since = last.entry(sandbox.id().clone()).or_insert_with(Instant::now);
                since.elapsed() >= each
            });
            let due: Vec<Sandbox> = due.collect();
            for sandbox in &due {
                last.insert(sandbox.id().clone(), Instant::now());
            }
            stream::iter(due).for_each_concurrent(AT_ONCE, |sandbox| self.checkpoint_one(sandbox)).await;
        }
    }

    async fn checkpoint_one(&self, sandbox: Sandbox) {
        let locked = self.lock_of(sandbox.id());
        let Ok(_change) = locked.try_lock() else { return };
        if self.is_closing() {
            return;
        }
        match sandbox.checkpoint().await {
            Ok(()) => tracing::debug!(id = %sandbox.id(), "a checkpoint was taken"),
            Err(error) => tracing::warn!(id = %sandbox.id(), %error, "no checkpoint was taken"),
        }
    }
}

/// The disk is everybody's.
const AT_ONCE: usize = 2;
const LOOKED_IN_BETWEEN: u32 = 8;
const LOOKED_EACH_MIN: Duration = Duration::from_millis(100);
