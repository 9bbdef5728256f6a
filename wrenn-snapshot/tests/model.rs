//! A lineage of generations against plain vectors of bytes.

use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
};

use proptest::prelude::*;
use wrenn_snapshot::{
    Generation, GenerationReader, LocalStore, PAGE_BYTES, PageIndex, PageRange, PageRun, PageSource, ReadPages, Space,
};

mod seed;

const PAGES: u32 = 48;
const CLUSTER_PAGES: u32 = 4;

/// A page that is written, and what it is filled with; 0 zeroes it.
type Change = (u32, u8);

#[derive(Clone, Debug)]
enum Way {
    Dirty,
    Sparse,
    Compared,
    /// By clusters that another program read, the last first.
    Read,
}

fn generations() -> impl Strategy<Value = Vec<(Way, Vec<Change>)>> {
    let way = prop_oneof![Just(Way::Dirty), Just(Way::Sparse), Just(Way::Compared), Just(Way::Read)];
    let changes = proptest::collection::btree_map(0..PAGES, 0u8..4, 0..20);
    let changes = changes.prop_map(|changes| changes.into_iter().collect());
    proptest::collection::vec((way, changes), 1..5)
}

fn range_of(page: u32) -> std::ops::Range<usize> {
    page as usize * PAGE_BYTES..(page as usize + 1) * PAGE_BYTES
}

fn sparse(pages: impl IntoIterator<Item = (u32, Vec<u8>)>) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(u64::from(PAGES) * PAGE_BYTES as u64).expect("a length");
    for (page, bytes) in pages {
        file.write_all_at(&bytes, range_of(page).start as u64).expect("written");
    }
    file
}

fn store_next(
    store: &LocalStore,
    parent: Option<&Generation>,
    way: &Way,
    changes: &[Change],
    model: &[u8],
) -> Generation {
    let mut pending = store.begin(parent).expect("begun");
    let page = |page: u32| (page, model[range_of(page)].to_vec());
    let report = match way {
        Way::Dirty => {
            let dirty: Vec<_> = changes.iter().map(|(page, _)| PageRange::new(*page, 1)).collect();
            pending.write_dirty(Space::Memory, model, &dirty)
        }
        Way::Sparse => pending.write_sparse(Space::Memory, &sparse(changes.iter().map(|(changed, _)| page(*changed)))),
        Way::Compared => {
            let held = (0..PAGES).filter(|page| model[range_of(*page)].iter().any(|byte| *byte != 0));
            pending.write_compared(Space::Memory, &sparse(held.map(page)))
        }
        Way::Read if parent.is_none() => pending.write_sparse(Space::Memory, &sparse((0..PAGES).map(page))),
        Way::Read => {
            let mut clusters: Vec<u32> = changes.iter().map(|(page, _)| page / CLUSTER_PAGES).collect();
            clusters.dedup();
            let pieces = clusters.into_iter().rev().map(|cluster| Ok(read(cluster, model)));
            let mut writer = pending.space_writer(Space::Memory).expect("a writer");
            writer.add_read(PAGES, pieces).expect("added");
            pending.seal(writer)
        }
    };
    let report = report.expect("written");
    let data = changes.iter().filter(|(_, value)| *value != 0).count() as u64;
    assert!(report.data_pages <= data, "no more is stored than was written");
    pending.publish(b"").expect("published")
}

fn read(cluster: u32, model: &[u8]) -> ReadPages {
    let pages = PageRange::new(cluster * CLUSTER_PAGES, CLUSTER_PAGES);
    let bytes = &model[range_of(pages.start.0).start..][..CLUSTER_PAGES as usize * PAGE_BYTES];
    ReadPages { pages, bytes: bytes.iter().any(|byte| *byte != 0).then(|| bytes.to_vec()) }
}

fn read_by_runs(reader: &GenerationReader) -> Vec<u8> {
    let mut scratch = vec![9; 5 * PAGE_BYTES];
    let mut bytes = Vec::new();
    let mut page = 0;
    while page < reader.page_count() {
        let run = reader.run(PageIndex(page), 7, &mut scratch).expect("read");
        assert!((1..=7).contains(&run.pages()));
        match run {
            PageRun::Zero(pages) => bytes.resize(bytes.len() + pages as usize * PAGE_BYTES, 0),
            PageRun::Data(data) => bytes.extend_from_slice(data),
        }
        page += run.pages();
    }
    bytes
}

proptest! {
    #![proptest_config(seed::cases(256))]
    #[test]
    fn every_generation_reads_as_memory_was(lineage in generations()) {
        let store = LocalStore::in_memory().expect("a store");
        let mut model = vec![0; PAGES as usize * PAGE_BYTES];
        let mut stored: Vec<(Generation, Vec<u8>)> = Vec::new();
        for (way, changes) in &lineage {
            for (page, value) in changes {
                model[range_of(*page)].fill(*value);
            }
            let parent = stored.last().map(|(generation, _)| generation);
            stored.push((store_next(&store, parent, way, changes, &model), model.clone()));
        }
        for (generation, model) in &stored {
            let loaded = store.load(generation.id()).expect("loads");
            let reader = loaded.reader(Space::Memory).expect("a reader");
            prop_assert!(&read_by_runs(&reader) == model);
            let copy = tempfile::NamedTempFile::new().expect("a file");
            reader.copy_into(copy.as_file(), copy.path()).expect("copied");
            prop_assert!(&std::fs::read(copy.path()).expect("read") == model);
            let stats = loaded.space(Space::Memory).expect("a space");
            let blocks = copy.as_file().metadata().expect("metadata").blocks();
            prop_assert!(blocks * 512 <= (stats.data_pages + 8) * PAGE_BYTES as u64, "zeros are holes");
        }
    }
}

#[test]
fn a_zeroed_page_stays_zero_over_three_generations() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let mut memory = vec![5; 4 * PAGE_BYTES];
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, 4)]).expect("written");
    let mut generation = pending.publish(b"").expect("published");
    memory[range_of(2)].fill(0);
    for dirty in [&[PageRange::new(2, 1)][..], &[], &[PageRange::new(0, 1)]] {
        let mut pending = store.begin(Some(&generation)).expect("begun");
        pending.write_dirty(Space::Memory, &memory, dirty).expect("written");
        generation = pending.publish(b"").expect("published");
        let mut read = vec![1; memory.len()];
        generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut read).expect("read");
        assert!(read == memory, "after {dirty:?}");
    }
}

#[test]
fn a_drive_that_was_deleted_from_and_grown_is_stored_by_what_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let ones = |page| (page, vec![1; PAGE_BYTES]);
    let mut pending = store.begin(None).expect("begun");
    pending.write_compared(Space::Drive, &sparse([ones(1), ones(2), ones(9)])).expect("written");
    let first = pending.publish(b"").expect("published");

    // Page 2 becomes a hole, page 9 stays, page 10 is new, and so is all that follows the old end.
    let file = sparse([ones(1), ones(9), ones(10)]);
    file.set_len(u64::from(PAGES + 4) * PAGE_BYTES as u64).expect("grown");
    let mut pending = store.begin(Some(&first)).expect("begun");
    let report = pending.write_compared(Space::Drive, &file).expect("written");
    assert_eq!((report.data_pages, report.zero_pages), (1, 1));
    let second = pending.publish(b"").expect("published");
    let mut read = vec![7; (PAGES as usize + 4) * PAGE_BYTES];
    second.reader(Space::Drive).expect("a reader").read_at(PageIndex(0), &mut read).expect("read");
    let mut expected = vec![0; read.len()];
    [1, 9, 10].into_iter().for_each(|page| expected[range_of(page)].fill(1));
    assert!(read == expected);
}

#[test]
fn what_another_program_read_is_refused_where_it_makes_no_sense() {
    let store = LocalStore::in_memory().expect("a store");
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Drive, &[3; 4 * PAGE_BYTES], &[PageRange::new(0, 4)]).expect("written");
    let parent = pending.publish(b"").expect("published");
    let piece = |start, count, bytes| ReadPages { pages: PageRange::new(start, count), bytes };
    let refused = |parent: Option<&Generation>, pieces: Vec<ReadPages>| {
        let mut writer = store.begin(parent).expect("begun").space_writer(Space::Drive).expect("a writer");
        writer.add_read(4, pieces.into_iter().map(Ok)).expect_err("refused").to_string()
    };
    assert!(refused(None, vec![]).contains("without a parent"));
    assert!(refused(Some(&parent), vec![piece(3, 2, None)]).contains("beyond the end"));
    assert!(refused(Some(&parent), vec![piece(u32::MAX, u32::MAX, None)]).contains("beyond the end"));
    assert!(refused(Some(&parent), vec![piece(0, 2, Some(vec![1; PAGE_BYTES]))]).contains("not those of the pages"));
    let twice = refused(Some(&parent), vec![piece(0, 2, None), piece(1, 1, Some(vec![1; PAGE_BYTES]))]);
    assert!(!twice.is_empty());
}

#[test]
fn a_space_that_was_not_written_is_the_parents() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, &[3; PAGE_BYTES], &[PageRange::new(0, 1)]).expect("written");
    let first = pending.publish(b"").expect("published");
    let second = store.begin(Some(&first)).expect("begun").publish(b"").expect("published");
    let mut page = vec![0; PAGE_BYTES];
    second.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut page).expect("read");
    assert_eq!((page, second.written_bytes(), second.parent()), (vec![3; PAGE_BYTES], 0, Some(first.id())));
}
