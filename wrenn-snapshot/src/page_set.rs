//! A set of pages.

use bitvec::vec::BitVec;

use crate::page::PageRange;

/// Pages of a space, a bit for each up to the last one that was ever in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct PageSet(BitVec);

impl PageSet {
    /// How many bits it has.
    #[cfg(test)]
    pub(crate) fn bits(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn insert(&mut self, pages: PageRange) {
        let end = usize::try_from(pages.end()).unwrap_or(usize::MAX);
        if end > self.0.len() {
            self.0.resize(end, false);
        }
        self.0[pages.start.0 as usize..end].fill(true);
    }

    pub(crate) fn remove(&mut self, pages: PageRange) {
        let end = usize::try_from(pages.end()).unwrap_or(usize::MAX).min(self.0.len());
        let start = (pages.start.0 as usize).min(end);
        self.0[start..end].fill(false);
    }

    pub(crate) fn clear(&mut self) {
        self.0.fill(false);
    }

    /// The pages as ranges: sorted, and apart.
    pub(crate) fn ranges(&self) -> Vec<PageRange> {
        let mut ranges = Vec::new();
        let mut next = 0;
        while let Some(skipped) = self.0[next..].first_one() {
            let start = next + skipped;
            let count = self.0[start..].first_zero().unwrap_or(self.0.len() - start);
            let number = |pages: usize| u32::try_from(pages).unwrap_or(u32::MAX);
            ranges.push(PageRange::new(number(start), number(count)));
            next = start + count;
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::seed::cases;

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_page_set_holds_what_a_set_of_numbers_does(
            changes in prop::collection::vec((any::<bool>(), 0u32..300, 0u32..40), 0..30),
        ) {
            let (mut set, mut model) = (PageSet::default(), BTreeSet::new());
            for (inserts, start, count) in changes {
                let range = PageRange::new(start, count);
                if inserts {
                    set.insert(range);
                    model.extend(start..start + count);
                } else {
                    set.remove(range);
                    model.retain(|page| !(start..start + count).contains(page));
                }
            }
            let ranges = set.ranges();
            let pages: Vec<u32> = ranges.iter().flat_map(|range| range.start.0..range.start.0 + range.count).collect();
            prop_assert_eq!(pages, model.iter().copied().collect::<Vec<_>>());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end() < u64::from(pair[1].start.0)));
            set.clear();
            prop_assert!(set.ranges().is_empty());
        }
    }
}
