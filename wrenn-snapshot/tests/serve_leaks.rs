//! A page server leaves nothing behind, however it ends. Alone in its file, since it counts what the process holds.

use guest::{Guest, checksum, serving::Serving};
use wrenn_snapshot::{EndReason, Features, OnceResident, PAGE_BYTES, Populate, ServeOptions};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

#[test]
fn a_thousand_servers_leave_neither_descriptors_nor_threads_nor_mappings() {
    let mut before = None;
    for round in 0..1000 {
        let name = "a_thousand_servers_leave_neither_descriptors_nor_threads_nor_mappings";
        let Some((mut guest, uffd, _)) = Guest::armed(name, PAGES, Features::SERVE_AND_TRACK) else { return };
        let once_resident = if round % 3 == 0 { OnceResident::End } else { OnceResident::Serve };
        let options = ServeOptions {
            watch: Some(guest.pidfd()),
            populate: Populate::InBackground { bytes_per_second: 1 << 30 },
            once_resident,
            ..ServeOptions::default()
        };
        let serving = Serving::bytes(uffd, vec![guest.region], vec![7; PAGES as usize * PAGE_BYTES], options);
        assert_eq!(guest.read(3), checksum(&[7; PAGE_BYTES]));
        let end = match round % 3 {
            0 => serving.join(),
            1 => {
                guest.kill();
                serving.join()
            }
            _ => {
                serving.stop.stop();
                serving.join()
            }
        };
        let as_it_was_ended = match round % 3 {
            0 => matches!(end.reason, EndReason::AllResident),
            1 => matches!(end.reason, EndReason::PeerGone),
            _ => matches!(end.reason, EndReason::Stopped),
        };
        assert!(as_it_was_ended, "round {round}: {end:?}");
        drop((guest, end));
        // What is made once is there after some rounds.
        if round == 20 {
            before = Some(held());
        }
    }
    let (before, after) = (before.expect("there were as many rounds"), held());
    assert!(after.0 <= before.0 && after.1 <= before.1 && after.2 <= before.2 + 4, "{before:?} then {after:?}");
}

/// How many descriptors, threads and mappings this process has.
fn held() -> (usize, usize, usize) {
    let entries = |dir: &str| std::fs::read_dir(dir).expect("listed").count();
    let mappings = std::fs::read_to_string("/proc/self/maps").expect("read").lines().count();
    (entries("/proc/self/fd"), entries("/proc/self/task"), mappings)
}

const PAGES: u32 = 16;
