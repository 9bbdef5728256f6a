//! The index against a plain vector of pages.

use proptest::prelude::*;

use super::*;
use crate::seed::cases;

const PAGES: u32 = 64;

/// What a page is in the model: `None` is never written, and a number names the bytes.
type Page = Option<Option<(GenerationId, u32)>>;

fn id(number: u8) -> GenerationId {
    GenerationId::from_bytes([number; 16])
}

/// A diff made page by page from `(page, is zero)`, packed as a data file is.
fn diff_of(generation: GenerationId, pages: &[(u32, bool)]) -> (ExtentIndex, Vec<(u32, Page)>) {
    let mut model = Vec::new();
    let mut extents = Vec::new();
    let mut packed = 0;
    for &(page, zero) in pages {
        let storage = if zero {
            model.push((page, Some(None)));
            Storage::Zero
        } else {
            model.push((page, Some(Some((generation, packed)))));
            packed += 1;
            Storage::Data { generation: 0, offset: packed - 1 }
        };
        push_joined(&mut extents, Extent { start: PageIndex(page), count: 1, storage });
    }
    (ExtentIndex::new(PAGES, vec![generation], extents).expect("a sorted diff is an index"), model)
}

fn changes() -> impl Strategy<Value = Vec<(u32, bool)>> {
    proptest::collection::btree_map(0..PAGES, any::<bool>(), 0..40).prop_map(|pages| pages.into_iter().collect())
}

fn model_of(index: &ExtentIndex, page: u32) -> Option<(GenerationId, u32)> {
    match index.lookup(PageIndex(page)).expect("the page is inside").storage {
        Storage::Zero => None,
        Storage::Data { generation, offset } => Some((index.generations()[generation as usize], offset)),
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_chain_of_merges_reads_as_the_last_write_of_each_page(chain in proptest::collection::vec(changes(), 1..6)) {
        let mut model: Vec<Page> = vec![None; PAGES as usize];
        let mut index = ExtentIndex::empty(PAGES);
        for (number, pages) in (1u8..).zip(&chain) {
            let (diff, written) = diff_of(id(number), pages);
            index = ExtentIndex::merge(&index, &diff);
            for (page, state) in written {
                model[page as usize] = state;
            }
        }
        for page in 0..PAGES {
            prop_assert_eq!(model_of(&index, page), model[page as usize].flatten(), "page {}", page);
        }
        let rebuilt = ExtentIndex::new(PAGES, index.generations().to_vec(), index.extents().collect());
        prop_assert_eq!(rebuilt.as_ref(), Ok(&index));
        for (position, generation) in index.generations().iter().enumerate() {
            let used = index.extents().any(
                |extent| matches!(extent.storage, Storage::Data { generation, .. } if generation as usize == position),
            );
            prop_assert!(used, "{} holds nothing", generation);
        }
        let extents: Vec<_> = index.extents().collect();
        for pair in extents.windows(2) {
            let mut joined = vec![pair[0]];
            push_joined(&mut joined, pair[1]);
            prop_assert_eq!(joined.len(), 2, "two extents were left unjoined");
        }
    }

    #[test]
    fn a_run_ends_where_contiguous_storage_ends(pages in changes(), page in 0..PAGES) {
        let (index, _) = diff_of(id(1), &pages);
        let run = index.lookup(PageIndex(page)).expect("the page is inside");
        prop_assert!(run.pages > 0 && page + run.pages <= PAGES);
        for step in 0..run.pages {
            let here = index.lookup(PageIndex(page + step)).expect("the run is inside");
            prop_assert_eq!(here.storage, run.storage.skip(step));
            prop_assert_eq!(here.pages, run.pages - step);
        }
    }

    #[test]
    fn a_search_finds_what_a_walk_finds(
        gaps in proptest::collection::vec((prop_oneof![9 => 0u32..3, 1 => 0u32..1 << 22], 1u32..4), 0..200),
        tail in 0u32..1 << 24,
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 20),
    ) {
        let mut extents = Vec::new();
        let mut end = 0;
        for (number, (gap, count)) in (0..).zip(&gaps) {
            let storage = Storage::Data { generation: 0, offset: number * 5 };
            extents.push(Extent { start: PageIndex(end + gap), count: *count, storage });
            end += gap + count;
        }
        let page_count = end + tail;
        let index = ExtentIndex::new(page_count, vec![id(1)], extents.clone()).expect("sorted and apart");
        prop_assert!(index.extents().eq(extents.iter().copied()));
        let edges = extents.iter().flat_map(|extent| [extent.start.0, extent.start.0 + extent.count]);
        let picked = picks.iter().map(|pick| u32::try_from(pick.index(page_count as usize + 1)).expect("small"));
        for page in edges.chain(picked).chain([0, page_count]) {
            let holder = extents.iter().find_map(|extent| (extent.start.0 <= page).then(|| extent.run_from(PageIndex(page)))?);
            let zeros = || {
                let next = extents.iter().map(|extent| extent.start.0).find(|start| *start > page);
                Run { pages: next.unwrap_or(page_count) - page, storage: Storage::Zero }
            };
            let expected = (page < page_count).then(|| holder.unwrap_or_else(zeros));
            prop_assert_eq!(index.lookup(PageIndex(page)), expected, "page {}", page);
        }
    }

    #[test]
    fn a_space_that_shrinks_loses_its_tail(pages in changes(), count in 0..PAGES) {
        let (parent, _) = diff_of(id(1), &pages);
        let index = ExtentIndex::merge(&parent, &ExtentIndex::empty(count));
        prop_assert_eq!(index.page_count(), count);
        for page in 0..count {
            prop_assert_eq!(model_of(&index, page), model_of(&parent, page));
        }
        prop_assert_eq!(index.lookup(PageIndex(count)), None);
    }
}

#[test]
fn a_four_gib_zero_run_is_one_search() {
    let index = ExtentIndex::empty(1 << 20);
    assert_eq!(index.lookup(PageIndex(7)), Some(Run { pages: (1 << 20) - 7, storage: Storage::Zero }));
}

#[test]
fn what_is_not_an_index_is_refused() {
    let data = |start, count, generation| Extent {
        start: PageIndex(start),
        count,
        storage: Storage::Data { generation, offset: u32::MAX - 8 },
    };
    for wrong in [
        vec![data(0, 0, 0)],
        vec![data(4, 2, 0), data(5, 1, 0)],
        vec![data(9, 2, 0)],
        vec![data(u32::MAX, u32::MAX, 0)],
        vec![data(0, 1, 1)],
        vec![data(0, 9, 0)],
    ] {
        assert!(ExtentIndex::new(10, vec![id(1)], wrong.clone()).is_err(), "{wrong:?}");
    }
}
