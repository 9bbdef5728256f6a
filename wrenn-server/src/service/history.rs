//! How much sandboxes have used of their machines.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use wrenn_core::{GuestMetrics, Sandbox, SandboxId};

/// What was measured of each sandbox, in memory alone.
#[derive(Debug, Default)]
pub(super) struct History(Mutex<HashMap<SandboxId, VecDeque<GuestMetrics>>>);

impl History {
    /// Asks a guest what it uses now. One that does not answer is left out.
    pub(super) async fn measure(&self, sandbox: &Sandbox) {
        match sandbox.metrics().await {
            Ok(metrics) => self.add(sandbox.id(), metrics.guest),
            Err(error) => tracing::debug!(id = %sandbox.id(), %error, "a sandbox was not measured"),
        }
    }

    /// What was measured of a sandbox, the newest last.
    pub(super) fn of(&self, id: &SandboxId) -> Vec<GuestMetrics> {
        self.lock().get(id).map(|all| all.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn forget(&self, id: &SandboxId) {
        self.lock().remove(id);
    }

    fn add(&self, id: &SandboxId, metrics: GuestMetrics) {
        let mut all = self.lock();
        let of = all.entry(id.clone()).or_default();
        if of.len() == KEPT {
            of.pop_front();
        }
        of.push_back(metrics);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, VecDeque<GuestMetrics>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of an hour, at four a minute.
const KEPT: usize = 240;
