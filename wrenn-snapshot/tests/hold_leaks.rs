//! Holding pages leaves nothing behind, however it ends. Alone in its file, since it counts what the process holds.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use guest::{Backing, Guest, serving::Serving};
use wrenn_snapshot::{Features, PAGE_BYTES, PageRange, ServeOptions};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

const PAGES: u32 = 128;

#[test]
fn two_hundred_holds_leave_neither_threads_nor_descriptors_nor_mappings() {
    let mut before = None;
    for round in 0..200 {
        let name = "two_hundred_holds_leave_neither_threads_nor_descriptors_nor_mappings";
        let Some((mut guest, uffd, mut tracker)) = Guest::armed_file(name, PAGES, Features::SERVE_AND_TRACK) else {
            return;
        };
        let second: OwnedFd = guest.second.take().expect("nobody took it");
        if let Err(error) = tracker.hold_with(uffd.as_fd(), second) {
            return guest::skipped(name, Backing::Shared, &error);
        }
        let memory = vec![3; PAGES as usize * PAGE_BYTES];
        let serving = Serving::bytes(uffd, vec![guest.region], memory, ServeOptions::default());
        (0..PAGES).for_each(|page| guest.fill(page, 7));
        let found = tracker.collect().expect("collected");
        let (held, _) = tracker.hold(&found).expect("held").expect("there is a second descriptor");
        assert_eq!(held.count(), u64::from(PAGES));
        assert_eq!(found, [PageRange::new(0, PAGES)]);
        match round % 3 {
            // The tracker goes first, and its thread with it.
            0 => {
                drop(tracker);
                drop(held);
            }
            // The guest dies while a thread of it waits.
            1 => {
                guest.begin_to_write_hard(1);
                guest.kill();
                drop((held, tracker));
            }
            _ => {
                guest.write(5, 9);
                drop((held, tracker));
            }
        }
        serving.stop.stop();
        drop(serving.join());
        drop(guest);
        if round == 20 {
            before = Some(held_at_rest(None));
        }
    }
    let before = before.expect("there were as many rounds");
    let after = held_at_rest(Some(before));
    assert!(after.0 <= before.0 && after.1 <= before.1 && after.2 <= before.2 + 4, "{before:?} then {after:?}");
}

/// How many descriptors, threads and mappings this process has, once it has no more than before: a thread that was told to
/// end does so a little later.
fn held_at_rest(before: Option<(usize, usize, usize)>) -> (usize, usize, usize) {
    let started = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = held_now();
        let is_at_rest = before.map_or(now.1 <= 2, |before| now.0 <= before.0 && now.1 <= before.1);
        if is_at_rest || started.elapsed() > Duration::from_secs(10) {
            return now;
        }
    }
}

fn held_now() -> (usize, usize, usize) {
    let entries = |dir: &str| std::fs::read_dir(dir).expect("listed").count();
    let mappings = std::fs::read_to_string("/proc/self/maps").expect("read").lines().count();
    (entries("/proc/self/fd"), entries("/proc/self/task"), mappings)
}
