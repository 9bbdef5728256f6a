//! Whether requests should be sent here, which is not the same as whether the server is alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::store::contract::Store;

/// Whether requests should be sent to this server.
#[derive(Debug)]
pub struct Readiness {
    store: Arc<dyn Store>,
    is_leaving: AtomicBool,
}

/// Why no requests should be sent to this server now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// It is about to end, and still serves.
    Leaving,
    /// The records do not answer, or not in time.
    Records,
}

impl Readiness {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, is_leaving: AtomicBool::new(false) }
    }

    /// From now on the server is not ready, whatever it still serves, so that a load balancer sends requests elsewhere.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::Relaxed);
    }

    /// Why no requests should be sent here; empty where they should.
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn lacks(&self) -> Vec<Unready> {
        let mut lacks = Vec::new();
        if self.is_leaving.load(Ordering::Relaxed) {
            lacks.push(Unready::Leaving);
        }
        match timeout(RECORDS_MAX, self.store.check()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the server is not ready: its records do not answer");
                lacks.push(Unready::Records);
            }
            Err(_) => {
                tracing::warn!("the server is not ready: its records do not answer within {RECORDS_MAX:?}");
                lacks.push(Unready::Records);
            }
        }
        lacks
    }
}

/// Shorter than load balancers wait for an answer.
const RECORDS_MAX: Duration = Duration::from_secs(2);
