//! The index of a space with a million extents: one look-up, and one merge.

use wrenn_snapshot::{
    GenerationId, PageIndex,
    extents::{Extent, ExtentIndex, Storage},
};

mod support;
use support::{Goal, in_turns, report_percentiles, time};

fn main() {
    lookup();
    merge();
}

/// Against a binary search over a sorted array of as many numbers.
fn lookup() {
    let index = index(1, 0, 3);
    let starts: Vec<u64> = index.extents().map(|extent| extent.start.byte_offset()).collect();
    let mut random = 1u64;
    let mut pages = move || {
        let next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            PageIndex(u32::try_from((random >> 33) % u64::from(PAGES)).expect("fewer than 2^32"))
        };
        std::iter::repeat_with(next).take(LOOKUPS as usize).collect::<Vec<_>>()
    };
    let mut more = pages;
    let subject = || {
        let pages = pages();
        time(|| pages.iter().filter_map(|page| index.lookup(*page)).map(|run| u64::from(run.pages)).sum::<u64>())
    };
    let reference = || {
        let pages = more();
        time(|| {
            pages
                .iter()
                .map(|page| {
                    let offset = page.byte_offset();
                    starts.partition_point(|start| *start <= offset)
                })
                .sum::<usize>()
        })
    };
    let [values, references] = in_turns(200, LOOKUPS, subject, reference);
    report_percentiles("header_lookup_1m", "ns", &values, &references, [Goal::AtMost(1.5), Goal::None]);
}

/// Against one pass that copies both inputs, extent by extent.
fn merge() {
    let parent = index(1, 0, 2);
    let diff = index(2, 1, 1);
    let subject = || time(|| ExtentIndex::merge(&parent, &diff));
    let reference = || {
        time(|| {
            let mut copy: Vec<Extent> = Vec::with_capacity(2 * EXTENTS as usize);
            for extent in parent.extents().chain(diff.extents()) {
                copy.push(std::hint::black_box(extent));
            }
            copy
        })
    };
    let [values, references] = in_turns(40, 1, subject, reference);
    report_percentiles("header_merge_1m", "ns", &values, &references, [Goal::AtMost(3.0), Goal::None]);
}

/// A million extents, one in four pages, so that no two can be joined; those of `start` 0 and 1 alternate.
fn index(generation: u8, start: u32, count: u32) -> ExtentIndex {
    let extents = (0..EXTENTS)
        .map(|number| Extent {
            start: PageIndex(number * STEP + start),
            count,
            storage: Storage::Data { generation: 0, offset: number * STEP },
        })
        .collect();
    let id = GenerationId::from_bytes([generation; 16]);
    ExtentIndex::new(PAGES, vec![id], extents).expect("sorted and apart")
}

const EXTENTS: u32 = 1 << 20;
const STEP: u32 = 4;
const PAGES: u32 = EXTENTS * STEP;
const LOOKUPS: u32 = 1000;
