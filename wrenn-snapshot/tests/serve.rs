//! A guest in another process sees its memory as it was, and the pages that it wrote are known.

use std::{
    io,
    os::fd::AsFd,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use guest::{Guest, checksum, serving::Serving};
use wrenn_snapshot::{
    ByteSource, EndReason, Error, Features, PAGE_BYTES, PageIndex, PageRange, PageRun, PageServer, PageSource, Region,
    ServeOptions, arm,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const PAGES: u32 = 64;

/// Page `n` is full of `n + 1`.
fn pattern(pages: u32) -> Vec<u8> {
    (0..pages).flat_map(|page| [u8::try_from(page % 255).expect("a byte") + 1; PAGE_BYTES]).collect()
}

fn page_of(memory: &[u8], page: u32) -> &[u8] {
    &memory[page as usize * PAGE_BYTES..][..PAGE_BYTES]
}

#[test]
fn a_write_is_dirty_and_a_read_is_clean() {
    let name = "a_write_is_dirty_and_a_read_is_clean";
    let Some((mut guest, uffd, mut tracker)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
    let memory = pattern(PAGES);
    let serving = Serving::bytes(uffd, vec![guest.region], memory.clone(), ServeOptions::default());

    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [], "nothing was touched");
    for page in [0, 17, PAGES - 1] {
        assert_eq!(guest.read(page), checksum(page_of(&memory, page)), "page {page}");
    }
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [], "reading writes nothing");

    guest.write(40, 99);
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [PageRange::new(40, 1)], "a write fault dirties its page and no neighbour");
    guest.write(17, 99);
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [PageRange::new(17, 1), PageRange::new(40, 1)], "pending pages accumulate");
    tracker.commit();
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [], "committed pages are forgotten");
    guest.write(17, 98);
    guest.write(41, 98);
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [PageRange::new(17, 1), PageRange::new(41, 1)], "protection was set again");

    let mut expected = page_of(&memory, 40).to_vec();
    expected[0] = 99;
    assert_eq!(guest.read(40), checksum(&expected), "the rest of a written page is the source's");
    assert_eq!(serving.end().faults, 4);
}

#[test]
fn four_threads_at_once_see_every_page() {
    let name = "four_threads_at_once_see_every_page";
    let Some((mut guest, uffd, _)) = Guest::armed(name, 1024, Features::SERVE_AND_TRACK) else { return };
    let memory = pattern(1024);
    let serving = Serving::bytes(uffd, vec![guest.region], memory.clone(), ServeOptions::default());
    assert_eq!(guest.read_all(), checksum(&memory));
    let report = serving.end();
    assert_eq!((report.pages, report.total_pages, report.bytes), (1024, 1024, 4 << 20));
    assert!(report.faults < 1024, "fault-around saves faults: {report:?}");
    assert!(report.latency_p50_us <= report.latency_max_us && report.latency_max_us > 0.0, "{report:?}");
}

#[test]
fn fault_around_stays_inside_of_window_and_region() {
    for (fault_around_bytes, page, pages) in [(64 << 10, 20, 16), (64 << 10, 63, 14), (4096, 20, 1), (0, 20, 1)] {
        let name = "fault_around_stays_inside_of_window_and_region";
        let Some((mut guest, uffd)) = Guest::start(name, PAGES) else { return };
        // The region ends two pages before the window does.
        let region = Region { len_bytes: guest.region.len_bytes - 2 * PAGE_BYTES as u64, ..guest.region };
        arm(uffd.as_fd(), &[region], Features::SERVE_AND_TRACK).expect("armed");
        let options = ServeOptions { fault_around_bytes, ..ServeOptions::default() };
        let serving = Serving::bytes(uffd, vec![region], pattern(PAGES), options);
        guest.read(page.min(PAGES - 3));
        assert_eq!(serving.end().pages, pages, "{fault_around_bytes} bytes around page {page}");
    }
}

#[test]
fn regions_may_be_in_another_order_than_the_space() {
    let name = "regions_may_be_in_another_order_than_the_space";
    let Some((mut guest, uffd)) = Guest::start(name, PAGES) else { return };
    let half = guest.region.len_bytes / 2;
    let low = Region { len_bytes: half, offset_bytes: half, ..guest.region };
    let high = Region::new(low.host_addr + half, half, 0);
    arm(uffd.as_fd(), &[low, high], Features::SERVE_AND_TRACK).expect("armed");
    let mut tracker = wrenn_snapshot::DirtyTracker::new(guest.pagemap(), vec![low, high]).expect("whole pages");
    let memory = pattern(PAGES);
    let serving = Serving::bytes(uffd, vec![low, high], memory.clone(), ServeOptions::default());
    assert_eq!(guest.read(0), checksum(page_of(&memory, PAGES / 2)));
    assert_eq!(guest.read(PAGES / 2), checksum(page_of(&memory, 0)));
    guest.write(PAGES / 2 + 3, 9);
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [PageRange::new(3, 1)]);
    serving.end();
}

#[test]
fn a_populated_guest_faults_no_more() {
    let name = "a_populated_guest_faults_no_more";
    let Some((mut guest, uffd, mut tracker)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
    let memory = pattern(PAGES);
    let source = ByteSource::new(memory.clone()).expect("whole pages");
    let mut server =
        PageServer::new(uffd, vec![guest.region], Box::new(source), ServeOptions::default()).expect("the region fits");
    let report = server.populate_all().expect("populated");
    assert_eq!((report.pages, report.faults), (u64::from(PAGES), 0));
    assert_eq!(guest.read_all(), checksum(&memory), "nobody serves, and nobody needs to");
    guest.write(5, 1);
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [PageRange::new(5, 1)]);
}

#[test]
fn a_server_stops_before_any_fault() {
    let name = "a_server_stops_before_any_fault";
    let Some((guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
    let serving = Serving::bytes(uffd, vec![guest.region], pattern(PAGES), ServeOptions::default());
    let asked = Instant::now();
    serving.end();
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
}

#[test]
fn the_death_of_the_vmm_ends_the_server() {
    let name = "the_death_of_the_vmm_ends_the_server";
    let Some((mut guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
    let options = ServeOptions { watch: Some(guest.pidfd()), ..ServeOptions::default() };
    let serving = Serving::bytes(uffd, vec![guest.region], pattern(PAGES), options);
    guest.read(3);
    guest.kill();
    let end = serving.join();
    assert!(matches!(end.reason, EndReason::PeerGone), "{end:?}");
}

/// Fails so many times, then serves ones.
struct Failing {
    failures_left: AtomicU32,
    kind: fn() -> Error,
}

impl PageSource for Failing {
    fn page_count(&self) -> u32 {
        PAGES
    }

    fn run<'a>(&'a self, _: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>, Error> {
        let left = self.failures_left.load(Ordering::Relaxed);
        if left > 0 {
            self.failures_left.store(left - 1, Ordering::Relaxed);
            return Err((self.kind)());
        }
        scratch.fill(1);
        Ok(PageRun::Data(&scratch[..pages_max as usize * PAGE_BYTES]))
    }
}

fn passing() -> Error {
    Error::Io { action: "read", path: PathBuf::from("memory.data"), source: io::Error::other("a bad day") }
}

fn lasting() -> Error {
    Error::Invalid("no such page".into())
}

#[test]
fn a_page_that_cannot_be_read_ends_the_server_with_the_error() {
    for (kind, failures) in [(passing as fn() -> Error, 3), (lasting, 2)] {
        let name = "a_page_that_cannot_be_read_ends_the_server_with_the_error";
        let Some((mut guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
        let source = Failing { failures_left: AtomicU32::new(failures), kind };
        let server = PageServer::new(uffd, vec![guest.region], Box::new(source), ServeOptions::default());
        let serving = Serving::start(server.expect("the region fits"));
        guest.begin_read(3);
        let end = serving.join();
        assert!(matches!(end.reason, EndReason::Failed(Error::Io { .. } | Error::Invalid(_))), "{end:?}");
        guest.kill();
    }
}

#[test]
fn a_failure_that_passes_is_not_noticed() {
    for (kind, failures) in [(passing as fn() -> Error, 2), (lasting, 1)] {
        let name = "a_failure_that_passes_is_not_noticed";
        let Some((mut guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
        let source = Failing { failures_left: AtomicU32::new(failures), kind };
        let server = PageServer::new(uffd, vec![guest.region], Box::new(source), ServeOptions::default());
        let serving = Serving::start(server.expect("the region fits"));
        assert_eq!(guest.read(3), checksum(&[1; PAGE_BYTES]));
        assert_eq!(serving.end().pages, 1, "the neighbours were given up, the page was not");
    }
}

#[test]
fn what_the_guest_discards_is_zeros_and_its_neighbours_are_not() {
    let name = "what_the_guest_discards_is_zeros_and_its_neighbours_are_not";
    let features = Features::SERVE_AND_TRACK.with(Features::EVENT_REMOVE);
    let Some((mut guest, uffd, mut tracker)) = Guest::armed(name, PAGES, features) else { return };
    let memory = pattern(PAGES);
    let source = ByteSource::new(memory.clone()).expect("whole pages");
    let server =
        PageServer::new(uffd, vec![guest.region], Box::new(source), ServeOptions::default()).expect("the region fits");
    let removed = server.removed_pages();
    let serving = Serving::start(server);
    guest.read(5);
    guest.discard(4, 3);
    guest.discard(40, 2);
    let zeros = checksum(&[0; PAGE_BYTES]);
    assert_eq!([4, 5, 6, 40, 41].map(|page| guest.read(page)), [zeros; 5]);
    for page in [3, 7, 39, 42] {
        assert_eq!(guest.read(page), checksum(page_of(&memory, page)), "page {page}");
    }
    let taken = removed.take();
    assert_eq!(taken, [PageRange::new(4, 3), PageRange::new(40, 2)]);
    tracker.collect().expect("a scan");
    taken.into_iter().for_each(|range| tracker.mark(range));
    assert_eq!(tracker.pending(), [PageRange::new(4, 3), PageRange::new(40, 2)]);
    serving.end();
}

#[test]
fn discards_that_race_with_faults_neither_hang_nor_mix_pages_up() {
    let name = "discards_that_race_with_faults_neither_hang_nor_mix_pages_up";
    let features = Features::SERVE_AND_TRACK.with(Features::EVENT_REMOVE);
    let Some((mut guest, uffd, _)) = Guest::armed(name, PAGES, features) else { return };
    let serving = Serving::bytes(uffd, vec![guest.region], pattern(PAGES), ServeOptions::default());
    assert_eq!(guest.race_discards(3000), 0);
    guest.discard(0, PAGES);
    assert_eq!(guest.read_all(), checksum(&vec![0; PAGES as usize * PAGE_BYTES]));
    serving.end();
}

#[test]
fn a_hole_that_the_vmm_punches_is_zeros_and_dirty() {
    let name = "a_hole_that_the_vmm_punches_is_zeros_and_dirty";
    let Some((mut guest, uffd, mut tracker)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
    let memory = pattern(PAGES);
    let serving = Serving::bytes(uffd, vec![guest.region], memory.clone(), ServeOptions::default());
    guest.read(5);
    let flags = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&guest.memory, flags, 5 * 4096, 4096).expect("a hole");
    assert_eq!(guest.read(5), checksum(&[0; PAGE_BYTES]), "not the source's page, which is out of date");
    assert_eq!(guest.read(4), checksum(page_of(&memory, 4)));
    tracker.collect().expect("a scan");
    assert_eq!(tracker.pending(), [PageRange::new(5, 1)]);
    serving.end();
}

#[test]
fn regions_that_do_not_fit_are_refused() {
    let name = "regions_that_do_not_fit_are_refused";
    let Some((guest, uffd)) = Guest::start(name, PAGES) else { return };
    let uffd = || uffd.try_clone().expect("a copy");
    let server = |regions, options| {
        let source = ByteSource::new(pattern(PAGES)).expect("whole pages");
        PageServer::new(uffd(), regions, Box::new(source), options)
    };
    let beyond = Region { offset_bytes: PAGE_BYTES as u64, ..guest.region };
    assert!(matches!(server(vec![beyond], ServeOptions::default()), Err(Error::Invalid(_))));
    assert!(matches!(server(vec![guest.region; 2], ServeOptions::default()), Err(Error::Invalid(_))));
    let options = ServeOptions { fault_around_bytes: 2 << 20, ..ServeOptions::default() };
    assert!(matches!(server(vec![guest.region], options), Err(Error::Invalid(_))));
}
