//! Pages that a page server tells of.

use std::sync::{Mutex, PoisonError};

use crate::{page::PageRange, page_set::PageSet};

/// Pages that something happened to, for somebody on another thread to take. It has a bit for each page of the guest at
/// most, however often something happens.
#[derive(Debug, Default)]
pub struct PageLog(Mutex<PageSet>);

impl PageLog {
    /// Takes what was added since the last call: sorted, and apart.
    #[must_use]
    pub fn take(&self) -> Vec<PageRange> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).ranges()
    }

    pub(crate) fn push(&self, range: PageRange) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_the_same_page_over_and_over_does_not_grow() {
        let log = PageLog::default();
        for round in 0..10_000 {
            log.push(PageRange::new(700 - round % 2, 3));
        }
        assert!(log.0.lock().expect("nobody panics").bits() <= 1024);
        assert_eq!(log.take(), [PageRange::new(699, 4)]);
        assert_eq!(log.take(), []);
    }
}
