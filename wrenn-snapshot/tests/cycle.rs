//! Pause and resume, again and again: the guest never sees a byte that it did not write.

use std::os::fd::OwnedFd;

use guest::{Guest, checksum};
use wrenn_snapshot::{
    DirtyTracker, EndReason, Features, Generation, LocalStore, PAGE_BYTES, PageIndex, PageServer, ServeOptions, Space,
    StopHandle, Uffd,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const PAGES: u32 = 96;

/// What the guest does between a resume and a pause: pages and what they are filled with.
const LIVES: [&[(u32, u32)]; 5] = [
    &[(3, 7), (4, 7), (5, 0), (90, 8)],
    &[(3, 0), (4, 9), (20, 0), (95, 1)],
    // Nothing is written at all.
    &[],
    &[(3, 0), (5, 6)],
    &[(0, 0), (3, 5), (20, 4), (90, 0)],
];

#[test]
fn five_pauses_and_resumes_keep_every_page() {
    let name = "five_pauses_and_resumes_keep_every_page";
    keeps_every_page(|| Guest::armed(name, PAGES, Features::SERVE_AND_TRACK));
}

#[test]
fn five_pauses_and_resumes_of_a_file_keep_every_page() {
    let name = "five_pauses_and_resumes_of_a_file_keep_every_page";
    keeps_every_page(|| Guest::armed_file(name, PAGES, Features::SERVE_AND_TRACK));
}

fn keeps_every_page(start: impl Fn() -> Option<(Guest, OwnedFd, DirtyTracker)>) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let mut model: Vec<u8> =
        (0..PAGES).flat_map(|page| [u8::try_from(page % 3).expect("a byte"); PAGE_BYTES]).collect();
    let mut pending = store.begin(None).expect("begun");
    let everything = wrenn_snapshot::PageRange::new(0, PAGES);
    pending.write_dirty(Space::Memory, &model, &[everything]).expect("written");
    let mut generation = pending.publish(b"").expect("published");

    for life in LIVES {
        let Some((mut guest, uffd, mut tracker)) = start() else { return };
        let uffd = live(&mut guest, uffd, &generation, &mut model, life);
        generation = pause(&guest, &mut tracker, &store, &generation, life);
        drop(uffd);
        let mut stored = vec![1; model.len()];
        let reader = generation.reader(Space::Memory).expect("a reader");
        reader.read_at(PageIndex(0), &mut stored).expect("read");
        assert!(stored == model, "after {life:?}");
    }
}

fn live(guest: &mut Guest, uffd: OwnedFd, generation: &Generation, model: &mut [u8], life: &[(u32, u32)]) -> Uffd {
    let source = Box::new(generation.reader(Space::Memory).expect("a reader"));
    let server = PageServer::new(uffd, vec![guest.region], source, ServeOptions::default()).expect("it fits");
    let stop = StopHandle::new().expect("a handle");
    let handle = stop.clone();
    let thread = std::thread::spawn(move || server.serve(&handle));
    for (page, value) in life {
        guest.fill(*page, *value);
        let range = *page as usize * PAGE_BYTES..(*page as usize + 1) * PAGE_BYTES;
        model[range].fill(u8::try_from(*value).expect("a byte"));
    }
    for page in [0, 3, 5, 20, 21, 90, PAGES - 1] {
        let range = page as usize * PAGE_BYTES..(page as usize + 1) * PAGE_BYTES;
        assert_eq!(guest.read(page), checksum(&model[range]), "page {page} in {life:?}");
    }
    stop.stop();
    let end = thread.join().expect("the server does not panic");
    assert!(matches!(end.reason, EndReason::Stopped), "{end:?}");
    end.uffd
}

fn pause(
    guest: &Guest,
    tracker: &mut DirtyTracker,
    store: &LocalStore,
    parent: &Generation,
    life: &[(u32, u32)],
) -> Generation {
    // The first attempt fails after the scan. What it found is still pending for the second.
    tracker.collect().expect("a scan");
    drop(store.begin(Some(parent)).expect("begun"));
    tracker.collect().expect("a scan");
    let dirty = tracker.pending();
    let pages: u32 = dirty.iter().map(|range| range.count).sum();
    assert_eq!(pages as usize, life.len(), "{dirty:?} in {life:?}");

    let mut pending = store.begin(Some(parent)).expect("begun");
    let report = pending.write_dirty(Space::Memory, &guest.view(), &dirty).expect("written");
    let zeros = life.iter().filter(|(_, value)| *value == 0).count() as u64;
    assert_eq!((report.zero_pages, report.data_pages), (zeros, life.len() as u64 - zeros));
    let generation = pending.publish(b"").expect("published");
    tracker.commit();
    assert_eq!(generation.written_bytes(), report.data_pages * PAGE_BYTES as u64);
    generation
}
