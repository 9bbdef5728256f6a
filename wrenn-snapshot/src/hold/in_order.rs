//! How many writes are let through at once.

/// How many pages are let through at once: more and more to a guest that writes in order, which then waits for one in
/// sixteen. Those that it does not come to count as written, although they are not.
#[derive(Debug, Default)]
pub(crate) struct InOrder {
    next: u32,
    count: u32,
}

impl InOrder {
    /// For a write to a page: how many to let through from it on, of which there are `most`.
    pub(crate) fn ahead(&mut self, page: u32, most: u32) -> u32 {
        let count = if page == self.next { (self.count * 2).clamp(1, AHEAD_PAGES_MAX) } else { 1 };
        self.count = count.min(most);
        self.next = page.saturating_add(self.count);
        self.count
    }
}

/// 64 KiB: a guest that writes in order waits for one read in sixteen writes.
pub(crate) const AHEAD_PAGES_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_and_more_is_let_through_in_order_and_one_page_elsewhere() {
        let mut order = InOrder::default();
        let mut page = 40;
        let counts: Vec<u32> = (0..7)
            .map(|_| {
                let count = order.ahead(page, 100);
                page += count;
                count
            })
            .collect();
        assert_eq!(counts, [1, 2, 4, 8, 16, 16, 16]);
        assert_eq!([order.ahead(7, 100), order.ahead(9, 100), order.ahead(10, 100)], [1, 1, 2]);
        // The memory ends, or what comes next is not there.
        assert_eq!([order.ahead(12, 3), order.ahead(15, 100)], [3, 6]);
    }
}
