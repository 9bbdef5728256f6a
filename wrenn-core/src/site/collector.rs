//! The state of a host's garbage collection: whether one is wanted or under way, and what the last one found.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::site::survey::Seen;

/// What the collections of one host share. [`Site`](crate::site::Site) runs them.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    progress: Mutex<Progress>,
    seen: Mutex<Seen>,
    pub(super) collections: AtomicU64,
    /// How many records and generations the last collection found damaged.
    pub(super) damaged: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether a collection was asked for since the last one began.
    pub(super) is_wanted: bool,
    /// Whether a task runs that collects.
    pub(super) has_task: bool,
}

impl Collector {
    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
