//! Guests that map one file privately: what each has written is its own, and is found.

use guest::{CLONED, Guest};
use wrenn_snapshot::{LocalStore, MemoryFile, PAGE_BYTES, PageIndex, PageRange, Space};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const PAGES: u32 = 1024;

#[test]
fn what_clones_write_is_found_and_is_in_no_other_clone() {
    const TEST: &str = "what_clones_write_is_found_and_is_in_no_other_clone";
    let Some((mut guest, _uffd, mut tracker)) = Guest::armed_clone(TEST, PAGES) else { return };
    assert_eq!(tracker.collect().expect("collected"), []);
    let clean = guest::checksum(&[CLONED; PAGE_BYTES]);
    (0..PAGES).for_each(|page| assert_eq!(guest.read(page), clean, "page {page}"));
    assert_eq!(tracker.collect().expect("collected"), [], "it has only read");
    assert_eq!(guest.own_pages(), 0);

    // One that was read before, and the last one.
    guest.write(3, 9);
    guest.fill(PAGES - 1, 5);
    let found = tracker.collect().expect("collected");
    assert_eq!(found, [PageRange::new(3, 1), PageRange::new(PAGES - 1, 1)]);
    assert_eq!(tracker.collect().expect("collected"), [], "they are protected again");
    assert_eq!(guest.own_pages(), 2);
    guest.write(3, 10);
    guest.write(4, 1);
    assert_eq!(tracker.collect().expect("collected"), [PageRange::new(3, 2)]);

    let store = LocalStore::in_memory().expect("a store");
    let mut pending = store.begin(None).expect("begun");
    pending.write_sparse(Space::Memory, &guest.memory).expect("written");
    let template = pending.publish(b"").expect("published");
    let mut pending = store.begin(Some(&template)).expect("begun");
    let mut writer = pending.space_writer(Space::Memory).expect("a writer");
    let memory = MemoryFile::private(guest.address_space(), guest.region).expect("all of it");
    writer.add_running(&memory, &tracker.pending()).expect("added");
    assert_eq!(pending.seal(writer).expect("sealed").data_pages, 3);
    let generation = pending.publish(b"").expect("published");
    let mut read = vec![0; PAGES as usize * PAGE_BYTES];
    generation.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut read).expect("read");
    let mut expected = vec![CLONED; read.len()];
    expected[3 * PAGE_BYTES] = 10;
    expected[4 * PAGE_BYTES] = 1;
    expected[(PAGES as usize - 1) * PAGE_BYTES..].fill(5);
    assert!(read == expected, "the generation is not what the guest has");
    assert!(guest.view().iter().all(|byte| *byte == CLONED), "the template has changed");

    guest.kill();
    let pending = store.begin(None).expect("begun");
    let mut writer = pending.space_writer(Space::Memory).expect("a writer");
    assert!(writer.add_running(&memory, &[PageRange::new(3, 1)]).is_err(), "its memory went with it");
}

#[test]
fn a_clone_that_writes_to_every_page_has_all_of_its_own() {
    const TEST: &str = "a_clone_that_writes_to_every_page_has_all_of_its_own";
    let Some((mut guest, _uffd, mut tracker)) = Guest::armed_clone(TEST, PAGES) else { return };
    (0..PAGES).for_each(|page| guest.fill(page, page % 200));
    assert_eq!(tracker.collect().expect("collected"), [PageRange::new(0, PAGES)]);
    assert_eq!(guest.own_pages(), u64::from(PAGES));
    assert!(guest.view().iter().all(|byte| *byte == CLONED), "the template has changed");
}

#[test]
fn a_region_that_is_a_part_of_the_memory_is_refused() {
    let file = || std::fs::File::open("/proc/self/mem").expect("this process has memory");
    for region in [wrenn_snapshot::Region::new(0x1000, 0x1000, 0x1000), wrenn_snapshot::Region::new(0x1000, 0x1800, 0)]
    {
        assert!(MemoryFile::private(file(), region).is_err(), "{region:?}");
    }
}
