//! Which pages are held, and which are not worth it.

use crate::page::PageRange;

/// What to do with pages that are to be copied as they are now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Runs to protect, with pages in their gaps that are not to be copied.
    pub(crate) runs: Vec<PageRange>,
    /// The pages that are in one of the runs.
    pub(crate) held: Vec<PageRange>,
    /// The others, which are copied sooner than protected.
    pub(crate) rest: Vec<PageRange>,
}

/// Joins the `wanted` pages to runs. Every page of a run is `there`: one that is not would be filled with zeros if the
/// guest touched it. Both are sorted, and apart.
pub(crate) fn plan(wanted: &[PageRange], there: &[PageRange]) -> Plan {
    let mut plan = Plan::default();
    let mut rest = wanted;
    while let Some(first) = rest.first() {
        let count = rest.windows(2).take_while(|pair| may_join(pair[0], pair[1], there)).count() + 1;
        let (run, later) = rest.split_at(count);
        plan.add(run, first.start.0, there);
        rest = later;
    }
    plan
}

impl Plan {
    fn add(&mut self, wanted: &[PageRange], start: u32, there: &[PageRange]) {
        let end = wanted.last().map_or_else(|| u64::from(start), |last| last.end());
        let pages: u64 = wanted.iter().map(|range| u64::from(range.count)).sum();
        let count = u32::try_from(end - u64::from(start)).unwrap_or(u32::MAX);
        let run = PageRange::new(start, count);
        if pages < HELD_PAGES_MIN || self.runs.len() == RUNS_MAX || !is_there(run, there) {
            self.rest.extend_from_slice(wanted);
        } else {
            self.runs.push(run);
            self.held.extend_from_slice(wanted);
        }
    }
}

fn may_join(before: PageRange, after: PageRange, there: &[PageRange]) -> bool {
    let gap = u64::from(after.start.0).saturating_sub(before.end());
    let Ok(count) = u32::try_from(after.end() - u64::from(before.start.0)) else { return false };
    gap <= GAP_PAGES_MAX && is_there(PageRange { start: before.start, count }, there)
}

/// Whether one segment of what is there has all of a run.
fn is_there(run: PageRange, there: &[PageRange]) -> bool {
    let segment = there.partition_point(|segment| segment.end() <= u64::from(run.start.0));
    there.get(segment).is_some_and(|segment| segment.start <= run.start && run.end() <= segment.end())
}

/// To move a run to the other descriptor takes some 10 us, as long as copying so many pages.
const HELD_PAGES_MIN: u64 = 16;
/// To protect a page takes 0.15 us, so that so many cost as much as another run.
const GAP_PAGES_MAX: u64 = 64;
/// A run may split a mapping in three, and a process may have 65 530 of them.
const RUNS_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seed::cases;

    fn ranges(pages: &[(u32, u32)]) -> Vec<PageRange> {
        pages.iter().map(|(start, count)| PageRange::new(*start, *count)).collect()
    }

    #[test]
    fn runs_are_joined_where_everything_between_is_there() {
        let wanted = ranges(&[(0, 20), (30, 20), (300, 20), (330, 1), (340, 20), (500, 3)]);
        let there = ranges(&[(0, 335), (338, 300)]);
        let plan = plan(&wanted, &there);
        assert_eq!(plan.runs, ranges(&[(0, 50), (300, 31), (340, 20)]));
        assert_eq!(plan.rest, ranges(&[(500, 3)]), "too few to be held");
        assert_eq!(plan.held, ranges(&[(0, 20), (30, 20), (300, 20), (330, 1), (340, 20)]));
    }

    #[test]
    fn pages_that_may_go_missing_are_not_held() {
        let plan = plan(&ranges(&[(0, 100)]), &ranges(&[(0, 60)]));
        assert_eq!(plan, Plan { rest: ranges(&[(0, 100)]), ..Plan::default() });
    }

    /// Ranges apart: each a gap and a length.
    fn apart() -> impl Strategy<Value = Vec<PageRange>> {
        prop::collection::vec((0..100_u32, 1..60_u32), 0..40).prop_map(|steps| {
            let mut next = 0;
            steps
                .into_iter()
                .map(|(gap, count)| {
                    let range = PageRange::new(next + gap, count);
                    next += gap + count + 1;
                    range
                })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn every_wanted_page_is_held_or_left_and_every_held_one_is_in_a_run(wanted in apart(), there in apart()) {
            let plan = plan(&wanted, &there);
            let mut all = [plan.held.clone(), plan.rest.clone()].concat();
            all.sort_unstable_by_key(|range| range.start);
            prop_assert_eq!(all, wanted);
            for held in &plan.held {
                let contains = |run: &&PageRange| run.start <= held.start && held.end() <= run.end();
                prop_assert_eq!(plan.runs.iter().filter(contains).count(), 1);
            }
            for run in &plan.runs {
                prop_assert!(is_there(*run, &there));
            }
        }
    }
}
