//! Pages that a page server tells of.

use std::sync::{Mutex, PoisonError};

use crate::page::PageRange;

/// Pages that something happened to, for somebody on another thread to take.
#[derive(Debug, Default)]
pub struct PageLog(Mutex<Vec<PageRange>>);

impl PageLog {
    /// Takes what was added since the last call, in order.
    #[must_use]
    pub fn take(&self) -> Vec<PageRange> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn push(&self, range: PageRange) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(range);
    }
}
