//! Pages that are held are copied as they were at one instant, while the guest writes hard; and what it writes meanwhile
//! is found afterwards.

use std::os::{
    fd::{AsFd, OwnedFd},
    unix::fs::FileExt,
};

use guest::{Backing, CLONED, Guest, serving::Serving};
use wrenn_snapshot::{
    ByteSource, DirtyTracker, Features, Generation, HeldPages, LocalStore, PAGE_BYTES, PageIndex, PageRange,
    PageServer, ServeOptions, Space, Tracking,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

/// How a guest gets its memory, and how its writes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Async,
    Sync,
    /// Nobody serves it: it maps privately what is there.
    Clone,
}

const WAYS: [Way; 3] = [Way::Async, Way::Sync, Way::Clone];

/// A guest whose memory comes in some way, and can be held.
struct Scene {
    way: Way,
    guest: Guest,
    tracker: DirtyTracker,
    serving: Option<Serving>,
    store: LocalStore,
    parent: Generation,
}

impl Scene {
    /// Runs a test with each way of tracking.
    fn each(name: &str, mut test: impl FnMut(Self)) {
        WAYS.into_iter().filter_map(|way| Self::of(name, PAGES, way)).for_each(&mut test);
    }

    fn of(test: &str, pages: u32, way: Way) -> Option<Self> {
        let (mut guest, uffd, mut tracker) = match way {
            Way::Async => Guest::armed_file(test, pages, Features::SERVE_AND_TRACK)?,
            Way::Sync => Guest::armed_file(test, pages, Features::SERVE_AND_TRACK_SYNC)?,
            Way::Clone => Guest::armed_clone(test, pages)?,
        };
        let second: OwnedFd = guest.second.take().expect("nobody took it");
        if way != Way::Sync
            && let Err(error) = tracker.hold_with(uffd.as_fd(), second)
        {
            guest::skipped(test, Backing::Shared, &error);
            return None;
        }
        let store = LocalStore::in_memory().expect("a store");
        let memory = vec![CLONED; pages as usize * PAGE_BYTES];
        let mut pending = store.begin(None).expect("begun");
        pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, pages)]).expect("written");
        let parent = pending.publish(b"").expect("published");
        let tracking = if way == Way::Sync { Tracking::Sync } else { Tracking::Async };
        let options = ServeOptions { tracking, ..ServeOptions::default() };
        let source = ByteSource::new(memory).expect("whole pages");
        let serving = (way != Way::Clone).then(|| {
            let server = PageServer::new(uffd, vec![guest.region], Box::new(source), options).expect("it fits");
            if way == Way::Sync {
                let file = guest.memory.try_clone().expect("a descriptor is free");
                tracker = server.tracker(Some(file)).expect("it is told of writes");
            }
            Serving::start(server)
        });
        Some(Self { way, guest, tracker, serving, store, parent })
    }

    fn end(self) {
        drop(self.tracker);
        self.serving.map(Serving::end);
    }

    /// Holds what the guest, which stands still, has written, and returns what is left to copy.
    fn hold(&mut self) -> (HeldPages, Vec<PageRange>) {
        let found = self.tracker.collect().expect("collected");
        let (held, rest) = self.tracker.hold(&found).expect("held").expect("there is a second descriptor");
        assert_eq!(held.count() + count(&rest), count(&found));
        (held, rest)
    }

    /// The memory as the guest has it, where a page that it never touched is the parent's.
    fn instant(&self) -> Vec<u8> {
        let len = self.guest.memory.metadata().expect("open").len();
        let mut memory = vec![CLONED; usize::try_from(len).expect("it fits")];
        match self.way {
            Way::Async | Way::Sync => guest::read_data(&self.guest.memory, &mut memory),
            Way::Clone => {
                let read = self.guest.address_space().read_exact_at(&mut memory, self.guest.region.host_addr);
                read.expect("read");
            }
        }
        memory
    }

    /// Publishes a child of the last generation, of pages that are held and pages that are not.
    fn publish(&mut self, held: HeldPages, rest: &[PageRange], instant: &[u8]) {
        let mut pending = self.store.begin(Some(&self.parent)).expect("begun");
        let mut writer = pending.space_writer(Space::Memory).expect("a writer");
        writer.add_dirty(instant, rest).expect("added");
        writer.add_held(&held).expect("added");
        drop(held);
        pending.seal(writer).expect("sealed");
        self.parent = pending.publish(b"").expect("published");
        self.tracker.commit();
    }

    fn assert_published(&self, instant: &[u8]) {
        let mut read = vec![0; instant.len()];
        self.parent.reader(Space::Memory).expect("a reader").read_at(PageIndex(0), &mut read).expect("read");
        let differs = (0..instant.len() / PAGE_BYTES)
            .find(|page| read[page * PAGE_BYTES..][..PAGE_BYTES] != instant[page * PAGE_BYTES..][..PAGE_BYTES]);
        assert_eq!(differs, None, "the first page that is not as it was");
    }
}

fn count(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

const PAGES: u32 = 4096;

#[test]
fn a_generation_of_held_pages_is_that_of_the_instant_while_the_guest_writes_hard() {
    Scene::each("a_generation_of_held_pages_is_that_of_the_instant", |mut scene| {
        for round in 0..6 {
            // Another part each time, scattered and dense; the rest of the memory is not there yet, or was held before.
            let first = round * 500;
            (first..first + 700).for_each(|page| scene.guest.fill(page, page % 7 + 100 + round));
            (0..PAGES).step_by(97).for_each(|page| scene.guest.write(page, round + 1));
            let instant = scene.instant();
            let (held, rest) = scene.hold();
            // With synchronous protection nothing is too small to be held.
            let is_split = scene.way == Way::Sync || rest.len() > 10;
            assert!(held.count() >= 700 && is_split, "both ways are used: {held:?}, {}", rest.len());
            scene.guest.begin_to_write_hard(3);
            scene.publish(held, &rest, &instant);
            scene.guest.finish();
            scene.assert_published(&instant);
            assert_eq!(
                count(&scene.tracker.collect().expect("collected")),
                u64::from(PAGES),
                "all of it is written again"
            );
            // What has been found is not pending twice, and is in the next generation.
            assert_eq!(count(&scene.tracker.collect().expect("collected")), 0);
            let (held, _) = scene.hold();
            assert_eq!(held.count(), 0);
            drop(held);
            let instant = scene.instant();
            let mut pending = scene.store.begin(Some(&scene.parent)).expect("begun");
            pending.write_dirty(Space::Memory, &instant, &scene.tracker.pending()).expect("written");
            scene.parent = pending.publish(b"").expect("published");
            scene.tracker.commit();
            scene.assert_published(&instant);
        }
        scene.end();
    });
}

#[test]
fn pages_that_the_guest_writes_after_a_hold_are_found_and_no_others() {
    Scene::each("pages_that_the_guest_writes_after_a_hold_are_found", |mut scene| {
        // Not in order here and below, so that each page is let through alone.
        (100..900).rev().for_each(|page| scene.guest.fill(page, 7));
        let (held, rest) = scene.hold();
        assert_eq!((held.count(), rest.len()), (800, 0));
        assert!(scene.tracker.hold(&[PageRange::new(100, 100)]).is_err(), "one image at a time");
        for page in [100, 500, 899, 50, 2000] {
            scene.guest.write(page, 9);
        }
        let mut found = Vec::new();
        // While the pages are still held, and after.
        found.extend(scene.tracker.collect().expect("collected"));
        scene.guest.write(502, 9);
        drop(held);
        scene.guest.write(504, 9);
        scene.guest.read(505);
        found.extend(scene.tracker.collect().expect("collected"));
        let mut pages: Vec<u32> = found.iter().flat_map(|range| range.start.0..range.start.0 + range.count).collect();
        pages.sort_unstable();
        assert_eq!(pages, [50, 100, 500, 502, 504, 899, 2000]);
        scene.end();
    });
}

/// As a device of a stopped VMM does it: the pages are neither among those to hold nor protected anew unseen.
#[test]
fn what_is_written_between_the_last_scan_and_the_hold_is_in_this_generation() {
    Scene::each("what_is_written_between_the_last_scan_and_the_hold", |mut scene| {
        (0..100).rev().for_each(|page| scene.guest.fill(page, 7));
        let instant = scene.instant();
        let found = scene.tracker.collect().expect("collected");
        let (held, rest) = scene.tracker.hold(&found).expect("held").expect("there is a second descriptor");
        assert_eq!((held.count(), rest.len()), (100, 0), "nothing is written after the scan");
        scene.publish(held, &rest, &instant);

        // A run with a gap that is clean, in memory that the last hold left protected. Not in order, so that each page is let
        // through alone.
        (0..20).chain(30..50).rev().for_each(|page| scene.guest.fill(page, 8));
        let found = scene.tracker.collect().expect("collected");
        assert_eq!(found, [PageRange::new(0, 20), PageRange::new(30, 20)]);
        [5, 25, 90].into_iter().for_each(|page| scene.guest.write(page, 9));
        let instant = scene.instant();
        let (held, rest) = scene.tracker.hold(&found).expect("held").expect("there is a second descriptor");
        assert_eq!(rest, [PageRange::new(25, 1), PageRange::new(90, 1)]);
        scene.publish(held, &rest, &instant);
        scene.assert_published(&instant);

        // And in memory that was never held before.
        (200..220).chain(230..250).rev().for_each(|page| scene.guest.fill(page, 8));
        (220..230).rev().for_each(|page| scene.guest.fill(page, 6));
        scene.tracker.collect().expect("collected");
        (200..220).chain(230..250).rev().for_each(|page| scene.guest.fill(page, 9));
        let found = scene.tracker.collect().expect("collected");
        scene.guest.write(225, 9);
        let (held, rest) = scene.tracker.hold(&found).expect("held").expect("there is a second descriptor");
        assert_eq!((held.count(), rest.as_slice()), (40, &[PageRange::new(225, 1)][..]));
        assert_eq!(scene.tracker.pending(), [PageRange::new(200, 50)]);
        drop(held);
        scene.end();
    });
}

#[test]
fn what_a_guest_writes_in_order_is_found_with_few_pages_more() {
    Scene::each("what_a_guest_writes_in_order_is_found_with_few_pages_more", |mut scene| {
        (0..1000).for_each(|page| scene.guest.fill(page, 7));
        let instant = scene.instant();
        let (held, rest) = scene.hold();
        (200..300).for_each(|page| scene.guest.write(page, 9));
        scene.publish(held, &rest, &instant);
        scene.assert_published(&instant);
        let found = scene.tracker.collect().expect("collected");
        assert_eq!(found.first().map(|range| range.start), Some(PageIndex(200)));
        assert!((100..116).contains(&count(&found)), "{found:?}");
        scene.end();
    });
}

#[test]
fn a_guest_that_writes_faster_than_its_pages_are_copied_waits_and_loses_nothing() {
    Scene::each("a_guest_that_writes_faster_than_its_pages_are_copied_waits", |mut scene| {
        (0..PAGES).for_each(|page| scene.guest.fill(page, page % 200 + 20));
        let instant = scene.instant();
        let (held, rest) = scene.hold();
        scene.guest.begin_to_write_hard(1);
        // It has the time to write to all of it.
        std::thread::sleep(std::time::Duration::from_millis(200));
        scene.publish(held, &rest, &instant);
        assert_eq!(scene.guest.finish(), u64::from(PAGES));
        scene.assert_published(&instant);
        scene.end();
    });
}

#[test]
fn a_guest_that_writes_more_than_is_kept_before_anybody_copies_goes_on() {
    let pages = 16 << 10;
    let name = "a_guest_that_writes_more_than_is_kept_before_anybody_copies";
    for mut scene in WAYS.into_iter().filter_map(|way| Scene::of(name, pages, way)) {
        (0..pages).for_each(|page| scene.guest.fill(page, page % 200 + 20));
        let instant = scene.instant();
        let (held, rest) = scene.hold();
        scene.guest.begin_to_write_hard(1);
        assert_eq!(scene.guest.finish(), u64::from(pages), "it waits for nobody who is not there");
        scene.publish(held, &rest, &instant);
        scene.assert_published(&instant);
        scene.end();
    }
}

#[test]
fn a_guest_goes_on_when_its_snapshot_is_given_up_and_dies_when_it_is_killed() {
    Scene::each("a_guest_goes_on_when_its_snapshot_is_given_up", |mut scene| {
        (0..PAGES).for_each(|page| scene.guest.fill(page, 8));
        let (held, _) = scene.hold();
        scene.guest.begin_to_write_hard(2);
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(held);
        assert_eq!(scene.guest.finish(), u64::from(2 * PAGES));
        // With the tracker goes the last of the second descriptor: nobody waits for it any more.
        let found = scene.tracker.collect().expect("collected");
        assert_eq!(count(&found), u64::from(PAGES));
        let (held, _) = scene.hold();
        let Scene { mut guest, tracker, serving, .. } = scene;
        drop(tracker);
        guest.begin_to_write_hard(1);
        drop(held);
        assert_eq!(guest.finish(), u64::from(PAGES));
        guest.kill();
        serving.map(Serving::end);
    });
}
