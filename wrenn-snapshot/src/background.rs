//! What a page server puts in place that nobody waits for, and in what order. Pure: no calls, no clock.
//!
//! ```text
//!  jobs: the working set, in order ─► the rest, if it is wanted ─► none
//!                 │ next: the first absent pages, one chunk at most
//!                 └─► passed, once they are in place or given up
//! ```

use crate::{
    counters::Origin,
    options::{Populate, ServeOptions},
    page::PageRange,
    region::{Region, Regions},
    working_set::WorkingSet,
};

/// Pages to put in place next: absent, of one region, whole granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) region: Region,
    pub(crate) pages: PageRange,
    pub(crate) origin: Origin,
}

/// The jobs that are left.
#[derive(Debug)]
pub(crate) struct Background {
    /// The next one comes last.
    jobs: Vec<Chunk>,
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Pages of the working set that were there before the prefetch came to them.
    pub(crate) late: u32,
    /// What to put in place. `None` if nothing is left.
    pub(crate) chunk: Option<Chunk>,
}

impl Background {
    pub(crate) fn new(options: &ServeOptions, regions: &Regions) -> Self {
        let prefetch = options.prefetch.as_ref().map_or(&[][..], WorkingSet::runs);
        let mut jobs: Vec<Chunk> = prefetch
            .iter()
            .flat_map(|run| regions.pieces_of(*run))
            .map(|(region, pages)| Chunk {
                region: *region,
                pages: region.whole_granules(pages),
                origin: Origin::Prefetch,
            })
            .collect();
        if options.populate != Populate::OnDemand {
            let rest = |region: &Region| Chunk { region: *region, pages: region.pages(), origin: Origin::Population };
            jobs.extend(regions.iter().map(rest));
        }
        jobs.reverse();
        Self { jobs }
    }

    /// Whether nothing is left.
    pub(crate) fn is_done(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Whether something of the working set is left.
    pub(crate) fn is_prefetching(&self) -> bool {
        self.jobs.last().is_some_and(|job| job.origin == Origin::Prefetch)
    }

    pub(crate) fn cancel(&mut self) {
        self.jobs.clear();
    }

    /// What to do next: `pages_max` pages at most, unless a granule has more. `first_absent` finds the first run of
    /// absent pages among some.
    pub(crate) fn next(&mut self, pages_max: u32, first_absent: impl Fn(PageRange) -> Option<PageRange>) -> Step {
        let mut late = 0;
        while let Some(job) = self.jobs.last_mut() {
            let absent = first_absent(job.pages);
            let there = absent.map_or(job.pages.count, |absent| absent.start.0 - job.pages.start.0);
            if job.origin == Origin::Prefetch {
                late += there;
            }
            job.pass(there);
            if let Some(absent) = absent {
                // Of two granules' pages, both are a multiple.
                let pages_max = pages_max.max(job.region.granule.pages());
                let chunk = Chunk { pages: PageRange { count: absent.count.min(pages_max), ..absent }, ..*job };
                return Step { late, chunk: Some(chunk) };
            }
            self.jobs.pop();
        }
        Step { late, chunk: None }
    }

    /// The pages of the last chunk are in place, or given up.
    pub(crate) fn passed(&mut self, chunk: &Chunk) {
        if let Some(job) = self.jobs.last_mut() {
            job.pass(chunk.pages.count);
        }
    }
}

impl Chunk {
    /// Takes pages off the front.
    fn pass(&mut self, pages: u32) {
        self.pages = PageRange::new(self.pages.start.0 + pages, self.pages.count - pages);
    }
}

/// 128 KiB, when no fault waits. A fault that comes meanwhile waits for the rest of it.
pub(crate) const CHUNK_PAGES: u32 = 32;
/// 64 KiB, after faults: as much as the fault itself brought, so that of two windows of a working set one is read ahead
/// even if the guest does nothing but wait for the next. A fault outside of the working set takes four times as long as
/// alone then; with 256 KiB it took ten times as long.
pub(crate) const CHUNK_PAGES_BETWEEN_FAULTS: u32 = 16;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;
    use crate::region::Granule;
    use crate::seed::cases;

    const PAGES: u32 = 2048;

    fn regions() -> Regions {
        let huge = Region { granule: Granule::Mib2, ..Region::new(0x4000_0000, 2 << 20, 6 << 20) };
        Regions::new(vec![Region::new(0x1000_0000, 4 << 20, 0), huge]).expect("apart")
    }

    fn options(runs: &[(u32, u32)], populate: Populate) -> ServeOptions {
        let mut set = WorkingSet::new();
        runs.iter().for_each(|(start, count)| set.record(PageRange::new(*start, *count)));
        ServeOptions { prefetch: Some(set), populate, ..ServeOptions::default() }
    }

    fn first_absent(there: &[bool], pages: PageRange) -> Option<PageRange> {
        let range = pages.start.0..pages.start.0 + pages.count;
        let start = range.clone().find(|page| !there[*page as usize])?;
        let end = (start..range.end).find(|page| there[*page as usize]).unwrap_or(range.end);
        Some(PageRange::new(start, end - start))
    }

    fn chunks(options: &ServeOptions, there: &[bool]) -> (Vec<(u32, u32, Origin)>, u32) {
        let mut background = Background::new(options, &regions());
        let there = RefCell::new(there.to_vec());
        let (mut chunks, mut late) = (Vec::new(), 0);
        loop {
            let step = background.next(CHUNK_PAGES, |pages| first_absent(&there.borrow(), pages));
            late += step.late;
            let Some(chunk) = step.chunk else { return (chunks, late) };
            chunks.push((chunk.pages.start.0, chunk.pages.count, chunk.origin));
            let range = chunk.pages.start.0 as usize..chunk.pages.start.0 as usize + chunk.pages.count as usize;
            there.borrow_mut()[range].fill(true);
            background.passed(&chunk);
        }
    }

    #[test]
    fn the_working_set_comes_first_and_in_its_own_order() {
        let populate = Populate::InBackground { bytes_per_second: 1 };
        let (chunks, late) = chunks(&options(&[(500, 70), (3, 2), (1540, 1)], populate), &[false; PAGES as usize]);
        let expected = [(500, 32), (532, 32), (564, 6), (3, 2), (1536, 512)]
            .map(|(start, count)| (start, count, Origin::Prefetch));
        assert_eq!(chunks[..5], expected, "a granule that is touched is whole");
        assert_eq!(chunks[5..7], [(0, 3, Origin::Population), (5, 32, Origin::Population)]);
        assert_eq!(late, 0);
    }

    #[test]
    fn pages_that_are_there_already_are_passed_over_and_counted() {
        let mut there = [false; PAGES as usize];
        there[10..14].fill(true);
        let (chunks, late) = chunks(&options(&[(8, 8), (12, 8), (u32::MAX - 9, 9)], Populate::OnDemand), &there);
        let expected = [(8, 2), (14, 2), (16, 4)].map(|(start, count)| (start, count, Origin::Prefetch));
        assert_eq!((chunks, late), (expected.to_vec(), 8));
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn every_page_is_put_in_place_once(
            runs in prop::collection::vec((0..PAGES, 1u32..300), 0..20),
            there in prop::collection::vec(any::<bool>(), 4),
        ) {
            // Whole granules, as a kernel has them.
            let there: Vec<bool> = there.into_iter().flat_map(|there| [there; 512]).collect();
            let populate = Populate::InBackground { bytes_per_second: 1 };
            let mut model = there.clone();
            for (start, count, _) in chunks(&options(&runs, populate), &there).0 {
                let pages_max = if start < 1024 { CHUNK_PAGES } else { 512 };
                prop_assert!(count <= pages_max);
                for page in start..start + count {
                    prop_assert!(!std::mem::replace(&mut model[page as usize], true), "{page} twice");
                }
            }
            let in_regions = (0..1024).chain(1536..2048);
            prop_assert!(in_regions.into_iter().all(|page: usize| model[page]), "none is left");
        }
    }
}
