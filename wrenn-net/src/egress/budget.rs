//! The descriptors that all guests of a program may have together.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::egress::counters::Way;
use crate::egress::pace::{Bandwidth, Pace};

/// What all guests of a program may have together, for their connections and flows. Above all that is descriptors, so that
/// guests cannot use up what the program itself needs. One guest gets at most a quarter of them.
///
/// ```
/// use wrenn_net::Budget;
///
/// let budget = Budget::new(4096).bytes_out_per_second(100 << 20).begun_per_second(5000);
/// # drop(budget);
/// ```
#[derive(Debug, Clone)]
pub struct Budget {
    left: Arc<Semaphore>,
    all: usize,
    out: Option<Arc<Bandwidth>>,
    into: Option<Arc<Bandwidth>>,
    begun: Option<Arc<Mutex<Pace>>>,
}

/// Some descriptors, which are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share(#[expect(dead_code, reason = "dropped, it gives them back")] OwnedSemaphorePermit);

impl Default for Budget {
    /// Half of those that the program may have now (`ulimit -n`).
    fn default() -> Self {
        let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        // Without a limit there is one that a program can never reach.
        Self::new(usize::try_from(soft.unwrap_or(1 << 20)).unwrap_or(usize::MAX) / 2)
    }
}

impl Budget {
    /// So many descriptors.
    #[must_use]
    pub fn new(descriptors: usize) -> Self {
        let all = descriptors.min(Semaphore::MAX_PERMITS);
        Self { left: Arc::new(Semaphore::new(all)), all, out: None, into: None, begun: None }
    }

    /// How many bytes of data from all guests are carried in a second. Default: no limit.
    #[must_use]
    pub fn bytes_out_per_second(mut self, bytes: u64) -> Self {
        self.out = Some(Arc::new(Bandwidth::new(bytes)));
        self
    }

    /// How many bytes of data to all guests are carried in a second. Default: no limit.
    #[must_use]
    pub fn bytes_in_per_second(mut self, bytes: u64) -> Self {
        self.into = Some(Arc::new(Bandwidth::new(bytes)));
        self
    }

    /// How many connections, flows and questions all guests begin in a second. More are lost, and a guest tries them again.
    /// Default: no limit but that of each guest.
    #[must_use]
    pub fn begun_per_second(mut self, count: u32) -> Self {
        self.begun = Some(Arc::new(Mutex::new(Pace::new(count))));
        self
    }

    pub(super) fn bandwidth(&self, way: Way) -> Option<&Bandwidth> {
        if way == Way::Out { self.out.as_deref() } else { self.into.as_deref() }
    }

    pub(super) fn may_begin(&self) -> bool {
        self.begun.as_ref().is_none_or(|pace| pace.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    /// How many one guest may have.
    pub(super) fn of_one_guest(&self) -> usize {
        self.all / 4
    }

    pub(super) fn take(&self, descriptors: u32) -> Option<Share> {
        Arc::clone(&self.left).try_acquire_many_owned(descriptors).ok().map(Share)
    }
}

/// What a connection has: one to the guest, and one to what it is connected to.
pub(super) const OF_A_CONNECTION: u32 = 2;
pub(super) const OF_A_FLOW: u32 = 1;
