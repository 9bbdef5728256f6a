//! Whatever a guest does to its memory, on whatever memory it has: it sees what it should, and never waits for ever.
//!
//! Each test runs on private and on shared memory, of 4 KiB and of 2 MiB pages, and says which it skipped.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    os::unix::fs::{FileExt, MetadataExt},
    sync::Arc,
    time::{Duration, Instant},
};

use guest::{
    Backing, Guest, checksum,
    scene::{Scene, Watched, alone, granules_of, pattern},
    serving::Serving,
};
use nix::fcntl::{FcntlArg, fcntl};
use wrenn_snapshot::{
    ByteSource, EndReason, Error, Features, Granule, LocalStore, OnceResident, PAGE_BYTES, PageIndex, PageRange,
    PageServer, Populate, ServeOptions, Space, StopHandle, Tracking, WorkingSet, adopt,
};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

/// A copy of a descriptor, at a number or the next one that is free.
fn at_number(fd: &OwnedFd, number: RawFd) -> OwnedFd {
    guest::owned(fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(number)).expect("a number is free"))
}

fn working_set(runs: impl IntoIterator<Item = PageRange>) -> WorkingSet {
    let mut set = WorkingSet::new();
    runs.into_iter().for_each(|run| set.record(run));
    set
}

/// Reads ahead from the end, so that faults come in between.
fn backwards(scene: &Scene) -> ServeOptions {
    let prefetch = Some(working_set((0..scene.granules).rev().step_by(2).map(|at| scene.pages(at, 1))));
    ServeOptions { prefetch, populate: Populate::InBackground { bytes_per_second: 1 << 30 }, ..alone() }
}

#[test]
fn the_first_the_middle_and_the_last_page_are_read_and_written() {
    Scene::each("the_first_the_middle_and_the_last_page", Features::NONE, |mut scene| {
        let serving = scene.serve(alone());
        let places = [0, scene.granules / 2, scene.granules - 1];
        for at in places {
            assert_eq!(scene.guest.read(at), checksum(scene.was(at)), "granule {at}");
        }
        assert_eq!(scene.dirty(), [], "reading writes nothing");
        for at in places {
            let neighbour = if at == 0 { 1 } else { at - 1 };
            scene.guest.write(neighbour, 77);
            assert_eq!(scene.guest.read(neighbour), scene.was_written(neighbour, 77), "granule {neighbour}");
        }
        let written = [scene.pages(1, 1), scene.pages(scene.granules / 2 - 1, 1), scene.pages(scene.granules - 2, 1)];
        assert_eq!(scene.dirty(), written);
        assert_eq!(serving.end().faults, 6);
    });
}

#[test]
fn a_write_after_a_read_is_dirty_and_is_found_again_after_a_scan() {
    Scene::each("a_write_after_a_read_is_dirty", Features::NONE, |mut scene| {
        let serving = scene.serve(alone());
        scene.guest.read(3);
        assert_eq!(scene.dirty(), []);
        for round in 1..4 {
            scene.guest.write(3, round);
            assert_eq!(scene.dirty(), [scene.pages(3, 1)], "round {round}");
            scene.tracker.as_mut().expect("it is served").commit();
            assert_eq!(scene.dirty(), []);
        }
        serving.end();
    });
}

#[test]
fn readers_see_every_page_one_by_one_and_at_once_while_pages_are_read_ahead() {
    for with_prefetch in [false, true] {
        Scene::each("readers_see_every_page", Features::NONE, |mut scene| {
            let options = if with_prefetch { backwards(&scene) } else { alone() };
            let serving = scene.serve(options);
            for at in (0..scene.granules).step_by(5) {
                assert_eq!(scene.guest.read(at), checksum(scene.was(at)), "granule {at}");
            }
            assert_eq!(scene.guest.read_all(), checksum(&scene.memory));
            assert_eq!(scene.dirty(), [], "pages that are read ahead are clean");
            let report = serving.end();
            assert_eq!((report.pages, report.bytes), (report.total_pages, scene.memory.len() as u64));
        });
    }
}

#[test]
fn writers_at_once_keep_what_they_wrote_while_pages_are_read_ahead() {
    Scene::each("writers_at_once_keep_what_they_wrote", Features::NONE, |mut scene| {
        let options = backwards(&scene);
        let serving = scene.serve(options);
        (0..scene.granules).for_each(|at| scene.guest.begin_write(at, 200));
        scene.finish(scene.granules);
        for at in 0..scene.granules {
            assert_eq!(scene.guest.read(at), scene.was_written(at, 200), "granule {at}");
        }
        assert_eq!(scene.dirty(), [scene.pages(0, scene.granules)]);
        serving.end();
    });
}

#[test]
fn what_is_discarded_is_zeros_and_its_neighbours_are_untouched() {
    Scene::each("what_is_discarded_is_zeros", Features::EVENT_REMOVE, |mut scene| {
        let source = scene.bytes();
        let server = scene.server(source, alone());
        let removed = server.removed_pages();
        let serving = Serving::start(server);
        // One that was there, two that were not, and one at the end.
        scene.guest.read(2);
        scene.guest.discard(2, 1);
        scene.guest.discard(4, 2);
        scene.guest.discard(scene.granules - 1, 1);
        for at in [2, 4, 5, scene.granules - 1] {
            assert_eq!(scene.guest.read(at), scene.zeros(), "granule {at}");
        }
        for at in [1, 3, 6, scene.granules - 2] {
            assert_eq!(scene.guest.read(at), checksum(scene.was(at)), "granule {at}");
        }
        let last = scene.pages(scene.granules - 1, 1);
        assert_eq!(removed.take(), [scene.pages(2, 1), scene.pages(4, 2), last]);
        assert_eq!(serving.end().removed_pages, u64::from(4 * scene.granule.pages()));
    });
}

#[test]
fn a_discard_that_races_with_a_read_leaves_zeros_and_nothing_stale() {
    Scene::each("a_discard_that_races_with_a_read", Features::EVENT_REMOVE, |mut scene| {
        let (serving, gate) = scene.serve_gated(3);
        scene.guest.begin_read(3);
        gate.wait_for_reader();
        // The server has read the page's bytes, and is about to install them, when the page goes.
        scene.guest.begin_discard(3, 1);
        scene.wait_for_event();
        gate.open();
        assert_eq!(scene.guest.finish(), scene.zeros());
        scene.guest.finish();
        assert_eq!(scene.guest.read(3), scene.zeros());
        assert!(serving.end().deferred > 0);
    });
}

#[test]
fn a_fault_that_the_kernel_put_off_is_served_without_a_new_event() {
    Scene::each("a_fault_that_the_kernel_put_off", Features::EVENT_REMOVE, |mut scene| {
        let (serving, gate) = scene.serve_gated(3);
        scene.guest.begin_read(3);
        gate.wait_for_reader();
        scene.guest.begin_discard(6, 1);
        scene.wait_for_event();
        gate.open();
        assert_eq!(scene.guest.finish(), checksum(scene.was(3)));
        scene.guest.finish();
        let report = serving.end();
        assert!(report.deferred > 0 && report.faults == 1, "{report:?}");
    });
}

#[test]
fn discards_that_race_with_many_faults_neither_hang_nor_mix_pages_up() {
    Scene::each("discards_that_race_with_many_faults", Features::EVENT_REMOVE, |mut scene| {
        let options = backwards(&scene);
        let serving = scene.serve(options);
        let rounds = if scene.granule == Granule::Kib4 { 2000 } else { 100 };
        assert_eq!(scene.guest.race_discards(rounds), 0);
        scene.guest.discard(0, scene.granules);
        assert_eq!(scene.guest.read_all(), checksum(&vec![0; scene.memory.len()]));
        serving.end();
    });
}

#[test]
fn a_discard_returns_in_time_while_pages_are_copied() {
    Scene::each("a_discard_returns_in_time", Features::EVENT_REMOVE, |mut scene| {
        let options = backwards(&scene);
        let serving = scene.serve(options);
        (0..scene.granules).step_by(3).for_each(|at| scene.guest.begin_read(at));
        let slowest_us = (0..scene.granules).map(|at| scene.guest.discard(at, 1)).max().expect("some");
        assert!(slowest_us < 500_000, "{slowest_us} us");
        scene.finish(scene.granules.div_ceil(3));
        serving.end();
    });
}

/// What a server did with a number that is not its own any more would be seen in the memory behind it.
#[test]
fn a_server_that_is_stopped_while_it_reads_ahead_touches_nothing_afterwards() {
    let (mut tried, mut recycled) = (0, 0);
    for attempt in 0..3 {
        let name = "a_server_that_is_stopped_while_it_reads_ahead";
        Scene::each(name, Features::NONE, |mut scene| {
            let Some((other, uffd, _)) = Guest::armed(name, 64, Features::SERVE_AND_TRACK) else { return };
            let options = backwards(&scene);
            let serving = scene.serve(options);
            serving.wait_for(|report| report.pages > attempt * u64::from(scene.granule.pages()));
            let counters = Arc::clone(&serving.counters);
            serving.stop.stop();
            let end = serving.join();
            assert!(matches!(end.reason, EndReason::Stopped), "{end:?}");
            let pages = counters.report().pages;
            let number = end.uffd.as_raw_fd();
            scene.guest.kill();
            drop(end.uffd);
            // The other guest's descriptor has the number from now on, and nobody serves it.
            let copy = at_number(&uffd, number);
            tried += 1;
            recycled += u32::from(copy.as_raw_fd() == number);
            std::thread::sleep(Duration::from_millis(20));
            let in_place = other.memory.metadata().expect("open").blocks();
            assert_eq!((in_place, counters.report().pages), (0, pages), "nobody puts a page in place");
        });
    }
    // Another test of this process may take the number in between, but not each time.
    assert!(tried == 0 || recycled > 0, "{recycled} of {tried}");
}

#[test]
fn reading_ahead_can_be_cancelled_and_faults_are_served_as_before() {
    Scene::each("reading_ahead_can_be_cancelled", Features::NONE, |mut scene| {
        let stop = StopHandle::new().expect("a handle");
        stop.stop_background();
        let (source, options) = (scene.bytes(), backwards(&scene));
        let server = scene.server(source, options);
        let counters = server.counters();
        let handle = stop.clone();
        let thread = std::thread::spawn(move || server.serve(&handle));
        assert_eq!(scene.guest.read(1), checksum(scene.was(1)));
        stop.stop();
        let end = thread.join().expect("the server does not panic");
        assert!(matches!(end.reason, EndReason::Stopped), "{end:?}");
        assert_eq!(counters.report().pages, u64::from(scene.granule.pages()));
    });
}

#[test]
fn a_server_that_is_stopped_before_its_vmm_runs_never_serves() {
    Scene::each("a_server_that_is_stopped_before_its_vmm_runs", Features::NONE, |mut scene| {
        let (source, options) = (scene.bytes(), backwards(&scene));
        let server = scene.server(source, options);
        let stop = StopHandle::new().expect("a handle");
        stop.stop();
        let asked = Instant::now();
        assert!(matches!(server.serve(&stop).reason, EndReason::Stopped));
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    });
}

#[test]
fn a_vmm_that_is_killed_while_faults_wait_ends_the_server() {
    Scene::each("a_vmm_that_is_killed_while_faults_wait", Features::NONE, |mut scene| {
        let (serving, gate) = scene.serve_gated(3);
        [3, 4, 5].into_iter().for_each(|at| scene.guest.begin_read(at));
        gate.wait_for_reader();
        scene.guest.kill();
        gate.open();
        let end = serving.join();
        assert!(matches!(end.reason, EndReason::PeerGone), "{end:?}");
    });
}

#[test]
fn damage_of_the_source_fails_the_fault_that_needs_it_and_nothing_before() {
    for cut_off in [false, true] {
        Scene::each("damage_of_the_source_fails_the_fault_that_needs_it", Features::NONE, |mut scene| {
            let dir = tempfile::tempdir().expect("a directory");
            let store = LocalStore::open(dir.path()).expect("a store");
            let mut pending = store.begin(None).expect("begun");
            pending.write_dirty(Space::Memory, &scene.memory, &[scene.pages(0, scene.granules)]).expect("written");
            let generation = pending.publish(b"").expect("published");
            let source = generation.reader(Space::Memory).expect("a reader");
            let data = dir.path().join(generation.id().to_string()).join("memory.data");
            let data = File::options().write(true).open(data).expect("the data");
            let damaged = PageIndex(scene.pages(3, 1).start.0).byte_offset();
            if cut_off {
                data.set_len(damaged + 1).expect("cut off");
            } else {
                data.write_all_at(b"rot", damaged + 99).expect("damaged");
            }
            let prefetch = Some(working_set([scene.pages(3, 1), scene.pages(1, 1)]));
            let options = ServeOptions { prefetch, ..ServeOptions::default() };
            let serving = Serving::start(scene.server(Box::new(source), options));
            serving.wait_for(|report| report.background_failures == 1 && report.prefetch_hits > 0);
            assert_eq!(scene.guest.read(0), checksum(scene.was(0)), "though its neighbour is damaged");
            scene.guest.begin_read(3);
            let end = serving.join();
            assert!(matches!(end.reason, EndReason::Failed(Error::Corrupt { .. })), "{end:?}");
            scene.guest.kill();
        });
    }
}

#[test]
fn pages_that_are_stored_in_pieces_are_served_whole() {
    Scene::each("pages_that_are_stored_in_pieces_are_served_whole", Features::NONE, |mut scene| {
        let dir = tempfile::tempdir().expect("a directory");
        let store = LocalStore::open(dir.path()).expect("a store");
        let mut pending = store.begin(None).expect("begun");
        pending.write_dirty(Space::Memory, &scene.memory, &[scene.pages(0, scene.granules)]).expect("written");
        let parent = pending.publish(b"").expect("published");
        // Three pages of the child's own, the middle one of zeros, at places that are apart on either kind of memory.
        let all = scene.pages(0, scene.granules).count;
        let own = [all / 8 + 1, all / 4 + 3, all - 1];
        for (at, byte) in own.into_iter().zip([0xaa, 0, 0xbb]) {
            scene.memory[at as usize * PAGE_BYTES..][..PAGE_BYTES].fill(byte);
        }
        let mut pending = store.begin(Some(&parent)).expect("begun");
        let ranges = own.map(|at| PageRange::new(at, 1));
        pending.write_dirty(Space::Memory, &scene.memory, &ranges).expect("written");
        let child = pending.publish(b"").expect("published");
        let source = Box::new(child.reader(Space::Memory).expect("a reader"));
        let serving = Serving::start(scene.server(source, ServeOptions::default()));
        for at in own.map(|page| page / scene.granule.pages()) {
            assert_eq!(scene.guest.read(at), checksum(scene.was(at)), "granule {at}");
        }
        assert_eq!(scene.guest.read_all(), checksum(&scene.memory));
        assert_eq!(scene.dirty(), []);
        serving.end();
    });
}

#[test]
fn the_second_restore_has_what_the_first_one_touched() {
    let touched = [5, 1, 2, 6];
    let mut recorded = Vec::new();
    Scene::each("the_second_restore_has_what_the_first_one_touched", Features::NONE, |mut scene| {
        let options = ServeOptions { record_pages_max: 1 << 20, ..alone() };
        let source = scene.bytes();
        let server = scene.server(source, options);
        let handle = server.touched_pages();
        let serving = Serving::start(server);
        for at in touched {
            scene.guest.read(at);
        }
        serving.end();
        let set = handle.working_set();
        assert_eq!(set.runs(), [scene.pages(5, 1), scene.pages(1, 2), scene.pages(6, 1)]);
        recorded.push(WorkingSet::decode(&set.encode()).expect("whole"));
    });
    let mut recorded = recorded.into_iter();
    Scene::each("the_second_restore_has_what_the_first_one_touched", Features::NONE, |mut scene| {
        let prefetch = recorded.next();
        let serving = scene.serve(ServeOptions { prefetch, ..alone() });
        let pages = u64::from(4 * scene.granule.pages());
        serving.wait_for(|report| report.prefetch_hits + report.prefetch_late == pages);
        for at in touched {
            assert_eq!(scene.guest.read(at), checksum(scene.was(at)), "granule {at}");
        }
        let report = serving.end();
        assert_eq!((report.faults, report.prefetch_hits, report.prefetch_bytes), (0, pages, pages * 4096));
    });
}

#[test]
fn a_server_whose_pages_are_all_in_place_ends_and_writes_are_still_found() {
    Scene::each("a_server_whose_pages_are_all_in_place_ends", Features::NONE, |mut scene| {
        let options = ServeOptions { once_resident: OnceResident::End, ..backwards(&scene) };
        let (source, is_read) = Watched::over(scene.bytes());
        let serving = Serving::start(scene.server(source, options));
        serving.wait_for(|report| report.detached);
        assert_eq!(is_read.strong_count(), 0, "it has let go of what it read");
        let end = match scene.tracking {
            // It has to hear of writes.
            Tracking::Sync => Err(serving),
            _ => Ok(serving.join()),
        };
        assert_eq!(scene.guest.read_all(), checksum(&scene.memory), "nobody serves, and nobody needs to");
        assert_eq!(scene.dirty(), []);
        scene.guest.write(4, 9);
        assert_eq!(scene.dirty(), [scene.pages(4, 1)], "the descriptor is open");
        match end {
            Ok(end) => assert!(matches!(end.reason, EndReason::AllResident), "{end:?}"),
            Err(serving) => _ = serving.end(),
        }
    });
}

#[test]
fn a_server_that_hears_of_discards_stays_however_resident_all_is() {
    Scene::each("a_server_that_hears_of_discards_stays", Features::EVENT_REMOVE, |mut scene| {
        let options = ServeOptions { once_resident: OnceResident::End, ..backwards(&scene) };
        let serving = scene.serve(options);
        serving.wait_for(|report| report.detached);
        scene.guest.discard(2, 1);
        assert_eq!(scene.guest.read(2), scene.zeros());
        serving.end();
    });
}

/// As Firecracker does: the VMM makes the handshake, for discards alone.
fn handed_over(name: &str, mut test: impl FnMut(Scene)) {
    for backing in Backing::SERVED {
        let Some((guest, uffd)) = Guest::start_on(name, backing, granules_of(backing)) else { continue };
        wrenn_snapshot::arm(uffd.as_fd(), &[], Features::EVENT_REMOVE).expect("the first call alone");
        let (memory, granules) = (pattern(backing), granules_of(backing));
        let (tracking, granule) = (Tracking::Sync, backing.granule());
        test(Scene { guest, uffd, tracking, tracker: None, memory, granules, granule });
    }
}

#[test]
fn a_descriptor_that_was_handed_over_is_served_untracked() {
    handed_over("a_descriptor_that_was_handed_over_is_served_untracked", |mut scene| {
        assert!(adopt(scene.uffd.as_fd(), &[scene.guest.region], Tracking::Async).is_err());
        adopt(scene.uffd.as_fd(), &[scene.guest.region], Tracking::Untracked).expect("adopted");
        scene.tracking = Tracking::Untracked;
        let serving = scene.serve(alone());
        scene.guest.write(3, 9);
        scene.guest.discard(5, 1);
        assert_eq!(scene.guest.read(3), scene.was_written(3, 9));
        assert_eq!(scene.guest.read(5), scene.zeros());
        assert_eq!(scene.guest.read(6), checksum(scene.was(6)));
        serving.end();
    });
}

#[test]
fn synchronous_tracking_finds_each_page_that_is_written_and_no_other() {
    handed_over("synchronous_tracking_finds_each_page_that_is_written", |mut scene| {
        adopt(scene.uffd.as_fd(), &[scene.guest.region], Tracking::Sync).expect("adopted");
        let serving = scene.serve(alone());
        scene.guest.read(3);
        scene.guest.read(4);
        assert_eq!(scene.dirty(), []);
        // One that is there, one that is not, and one that was written before.
        scene.guest.write(3, 9);
        scene.guest.write(6, 9);
        scene.guest.write(3, 10);
        let tracker = scene.tracker.as_mut().expect("it is served");
        assert_eq!(
            tracker.collect().expect("collected"),
            [scene.granule.pages() * 3, scene.granule.pages() * 6].map(|at| PageRange::new(at, scene.granule.pages()))
        );
        assert_eq!(scene.guest.read(3), scene.was_written(3, 10));
        assert_eq!(scene.guest.read(6), scene.was_written(6, 9));
        // What was collected is told of again, and is pending until it is published.
        scene.guest.write(6, 11);
        let tracker = scene.tracker.as_mut().expect("it is served");
        assert_eq!(
            tracker.collect().expect("collected"),
            [PageRange::new(scene.granule.pages() * 6, scene.granule.pages())]
        );
        assert_eq!(scene.dirty(), [scene.pages(3, 1), scene.pages(6, 1)]);
        assert_eq!(scene.guest.read(6), scene.was_written(6, 11));
        serving.end();
    });
}

#[test]
fn a_descriptor_nobody_armed_is_refused() {
    let name = "a_descriptor_nobody_armed_is_refused";
    let Some((guest, uffd)) = Guest::start(name, 4) else { return };
    let refused = adopt(uffd.as_fd(), &[guest.region], Tracking::Untracked);
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    let source = || Box::new(ByteSource::new(vec![1; 4 * PAGE_BYTES]).expect("whole pages"));
    let server = PageServer::new(uffd.try_clone().expect("a copy"), vec![guest.region], source(), alone());
    assert!(matches!(server, Err(Error::Invalid(_))), "{server:?}");
    let other: OwnedFd = File::open("/dev/null").expect("opened").into();
    assert!(PageServer::new(other, vec![guest.region], source(), alone()).is_err());
}
