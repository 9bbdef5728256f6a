//! A page server that is told of each first write: its tracker loses none, whatever comes between.

use std::{
    os::fd::AsFd,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use guest::{Guest, scene::alone, serving::Serving};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wrenn_snapshot::{
    ByteSource, DirtyTracker, Error, Features, PAGE_BYTES, PageRange, PageServer, ServeOptions, Tracking,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const PAGES: u32 = 2048;

/// A guest whose memory was all threes, and its tracker.
fn told(name: &str, features: Features, options: ServeOptions) -> Option<(Guest, DirtyTracker, Serving)> {
    let features = Features::SERVE_AND_TRACK_SYNC.with(features);
    let (guest, uffd, _) = Guest::armed_file(name, PAGES, features)?;
    let source = ByteSource::new(vec![3; PAGES as usize * PAGE_BYTES]).expect("whole pages");
    let options = ServeOptions { tracking: Tracking::Sync, ..options };
    let server = PageServer::new(uffd, vec![guest.region], Box::new(source), options).expect("it fits");
    let tracker = server.tracker(None).expect("it is told of writes");
    Some((guest, tracker, Serving::start(server)))
}

fn count(ranges: &[PageRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

/// As a live snapshot does it. A write that is let through after its page was collected, and before it is protected again,
/// would be lost, and so would a page that counts as written before it is there.
#[test]
fn what_is_copied_in_rounds_while_a_guest_writes_hard_is_what_it_has_in_the_end() {
    let name = "what_is_copied_in_rounds_while_a_guest_writes_hard";
    for _ in 0..3 {
        let Some((mut guest, mut tracker, serving)) = told(name, Features::NONE, ServeOptions::default()) else {
            return;
        };
        let mut copy = vec![3; PAGES as usize * PAGE_BYTES];
        let file = guest.memory.try_clone().expect("a descriptor is free");
        let mut add = |found: &[PageRange]| {
            for pages in found {
                let at = pages.start.0 as usize * PAGE_BYTES;
                let into = &mut copy[at..][..pages.count as usize * PAGE_BYTES];
                file.read_exact_at(into, at as u64).expect("read");
            }
        };
        // Two threads, so that a write is told of that another one has been let through for.
        let writers = [20, 17];
        writers.iter().for_each(|rounds| guest.begin_to_write_hard(*rounds));
        let (started, mut rounds, mut found) = (Instant::now(), 0, 0);
        while started.elapsed() < Duration::from_millis(300) || found <= u64::from(PAGES) {
            assert!(started.elapsed() < Duration::from_secs(60), "only {found} pages are written in {rounds} rounds");
            let pages = tracker.collect().expect("collected");
            add(&pages);
            rounds += 1;
            found += count(&pages);
            // The tracker would have the lock all the time.
            std::thread::sleep(Duration::from_micros(200));
        }
        writers.iter().for_each(|_| _ = guest.finish());
        add(&tracker.collect().expect("collected"));
        assert!(rounds > 3, "it was written meanwhile: {found} pages in {rounds} rounds");
        let memory = guest.view();
        let differs = (0..PAGES as usize).find(|page| {
            let page = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
            copy[page.clone()] != memory[page]
        });
        assert_eq!(differs, None, "the first page that is not as the guest has it");
        serving.end();
    }
}

#[test]
fn a_guest_that_writes_in_order_waits_for_few_writes_and_pages_that_are_not_there_stay_unwritten() {
    let name = "a_guest_that_writes_in_order_waits_for_few_writes";
    let Some((mut guest, mut tracker, serving)) = told(name, Features::NONE, alone()) else { return };
    // There, and clean, but for a gap.
    (0..40).chain(60..100).for_each(|page| _ = guest.read(page));
    (10..100).filter(|page| !(40..60).contains(page)).for_each(|page| guest.write(page, 9));
    let found = tracker.collect().expect("collected");
    assert_eq!(found, [PageRange::new(10, 30), PageRange::new(60, 40)], "no page that is a hole counts as written");
    // Six waits let 63 pages through, and one more begins anew.
    (10..20).for_each(|page| guest.write(page, 10));
    let found = tracker.collect().expect("collected");
    assert_eq!(found, [PageRange::new(10, 15)], "1, 2, 4 and 8 pages at once");
    serving.end();
}

#[test]
fn protecting_again_while_nobody_reads_a_discard_is_an_error_in_the_end_and_loses_nothing() {
    let name = "protecting_again_while_nobody_reads_a_discard";
    let Some((mut guest, mut tracker, serving)) = told(name, Features::EVENT_REMOVE, alone()) else { return };
    guest.write(9, 1);
    serving.stop.stop();
    let end = serving.join();
    guest.begin_discard(3, 1);
    let mut fds = [PollFd::new(end.uffd.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1), "the discard waits");
    let refused = tracker.collect();
    assert!(matches!(refused, Err(Error::Kernel { .. })), "{refused:?}");
    assert_eq!(tracker.pending(), []);
    // Somebody reads it, and the page is found.
    let mut event = [0; 32];
    nix::unistd::read(&end.uffd, &mut event).expect("an event");
    guest.finish();
    assert_eq!(tracker.collect().expect("collected"), [PageRange::new(9, 1)]);
    assert_eq!(tracker.pending(), [PageRange::new(9, 1)]);
    guest.kill();
}

#[test]
fn only_a_server_that_is_told_of_writes_has_a_tracker_and_it_holds_the_pages_of_a_file_alone() {
    let name = "only_a_server_that_is_told_of_writes_has_a_tracker";
    let Some((mut guest, mut tracker, serving)) = told(name, Features::NONE, alone()) else { return };
    guest.write(1, 1);
    let found = tracker.collect().expect("collected");
    assert!(tracker.hold(&found).expect("it is not tried").is_none(), "there is no file to read what is held from");
    serving.end();
    let Some((guest, uffd, _)) = Guest::armed_file(name, PAGES, Features::SERVE_AND_TRACK) else { return };
    let source = ByteSource::new(vec![3; PAGES as usize * PAGE_BYTES]).expect("whole pages");
    let server = PageServer::new(uffd, vec![guest.region], Box::new(source), ServeOptions::default());
    assert!(matches!(server.expect("it fits").tracker(None), Err(Error::Invalid(_))));
}
