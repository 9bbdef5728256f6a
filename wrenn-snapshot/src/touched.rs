//! The pages that a guest touches.

use std::sync::{Mutex, PoisonError};

use crate::{
    page::{PageIndex, PageRange},
    working_set::WorkingSet,
};

/// The pages that a guest touches while a page server serves it.
#[derive(Debug)]
pub struct TouchedPages {
    pages_max: u32,
    so_far: Mutex<WorkingSet>,
}

impl TouchedPages {
    pub(crate) fn new(pages_max: u32) -> Self {
        Self { pages_max, so_far: Mutex::default() }
    }

    /// What was touched so far: the windows around faults, and none of what was prefetched or populated.
    #[must_use]
    pub fn working_set(&self) -> WorkingSet {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn record(&self, first: PageIndex, count: u32) {
        if self.pages_max > 0 {
            let mut so_far = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
            so_far.record_up_to(PageRange { start: first, count }, self.pages_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(runs: &[(u32, u32)]) -> WorkingSet {
        let mut set = WorkingSet::new();
        runs.iter().for_each(|(start, count)| set.record(PageRange::new(*start, *count)));
        set
    }

    #[test]
    fn a_recording_is_bounded() {
        let touched = TouchedPages::new(10);
        touched.record(PageIndex(0), 8);
        touched.record(PageIndex(100), 8);
        touched.record(PageIndex(200), 8);
        assert_eq!(touched.working_set().runs(), [PageRange::new(0, 8), PageRange::new(100, 2)]);
        assert_eq!(set(&[(0, u32::MAX), (5, 5)]).page_count(), WorkingSet::PAGES_MAX);
        assert_eq!(set(&[(u32::MAX - 3, 9), (7, 0)]).runs(), [PageRange::new(u32::MAX - 3, 3)]);
        let off = TouchedPages::new(0);
        off.record(PageIndex(0), 8);
        assert!(off.working_set().is_empty());
    }
}
