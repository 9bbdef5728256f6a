//! A space that is written in rounds, while what it is written from changes, is what the last round of each page said.

use std::{io::Write as _, os::unix::fs::FileExt as _};

use proptest::prelude::*;
use wrenn_snapshot::{LocalStore, MemoryFile, PAGE_BYTES, PageIndex, PageRange, Space};

mod seed;

const PAGES: u32 = 40;

/// Pages that are written in one round, and with what.
fn round() -> impl Strategy<Value = Vec<(u32, u8)>> {
    prop::collection::vec((0..PAGES, 0..4_u8), 0..12)
}

fn ranges(pages: &[(u32, u8)]) -> Vec<PageRange> {
    let mut pages: Vec<u32> = pages.iter().map(|(page, _)| *page).collect();
    pages.sort_unstable();
    pages.dedup();
    pages.into_iter().map(|page| PageRange::new(page, 1)).collect()
}

proptest! {
    #![proptest_config(seed::cases(400))]

    #[test]
    fn the_last_round_of_a_page_counts(before in round(), rounds in prop::collection::vec(round(), 1..5)) {
        let store = LocalStore::in_memory().expect("a store");
        let mut memory = vec![0; PAGES as usize * PAGE_BYTES];
        let mut file = tempfile::tempfile().expect("a file");
        let apply = |memory: &mut [u8], pages: &[(u32, u8)]| {
            for (page, byte) in pages {
                memory[*page as usize * PAGE_BYTES..][..PAGE_BYTES].fill(*byte);
            }
        };
        apply(&mut memory, &before);
        let mut pending = store.begin(None).expect("begun");
        pending.write_dirty(Space::Memory, &memory, &ranges(&before)).expect("written");
        let parent = pending.publish(b"").expect("published");

        file.write_all(&memory).expect("written");
        let running_memory = MemoryFile::shared(file.try_clone().expect("another")).expect("whole pages");
        let mut pending = store.begin(Some(&parent)).expect("begun");
        let mut writer = pending.space_writer(Space::Memory).expect("a writer");
        let (last, running) = rounds.split_last().expect("one at least");
        for pages in running {
            apply(&mut memory, pages);
            file.write_all_at(&memory, 0).expect("written");
            writer.add_running(&running_memory, &ranges(pages)).expect("added");
        }
        apply(&mut memory, last);
        writer.add_dirty(&memory, &ranges(last)).expect("added");
        let report = pending.seal(writer).expect("sealed");
        prop_assert!(report.stored_pages >= report.data_pages);
        let child = pending.publish(b"").expect("published");

        let mut read = vec![9; memory.len()];
        let reader = store.load(child.id()).expect("loaded").reader(Space::Memory).expect("a reader");
        reader.read_at(PageIndex(0), &mut read).expect("read");
        prop_assert_eq!(read, memory);
    }
}

#[test]
fn a_writer_that_is_dropped_or_failed_leaves_the_space_to_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let mut pending = store.begin(None).expect("begun");
    let page = [1; PAGE_BYTES];
    drop(pending.space_writer(Space::Memory).expect("a writer"));
    let mut writer = pending.space_writer(Space::Memory).expect("another");
    writer.add_dirty(&page, &[PageRange::new(5, 1)]).expect_err("outside of the view");
    writer.add_dirty(&page, &[PageRange::new(0, 1)]).expect_err("it failed before");
    drop(writer);
    let mut writer = pending.space_writer(Space::Memory).expect("another");
    writer.add_dirty(&page, &[PageRange::new(0, 1)]).expect("added");
    pending.seal(writer).expect("sealed");
    let empty = store.begin(None).expect("begun").space_writer(Space::Drive).expect("a writer");
    pending.seal(empty).expect_err("another generation's, and empty");
    pending.publish(b"").expect("published");
}
