//! Slots on the real kernel: real namespaces and taps. Skipped by name where the process may not make them.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::os::fd::AsRawFd;
use std::time::Duration;

use wrenn_net::{NetError, Slot};

fn slot_or_skip(test: &str) -> Option<Slot> {
    match Slot::create() {
        Ok(slot) => Some(slot),
        Err(error @ (NetError::Permission { .. } | NetError::NoTunDevice(_))) => {
            println!("skipped: {test}: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn tap_flags(slot: &Slot) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", slot.tap().as_raw_fd())).unwrap()
}

#[test]
fn slots_have_the_same_names_and_do_not_collide() {
    let Some(first) = slot_or_skip("slots_have_the_same_names_and_do_not_collide") else { return };
    let second = Slot::create().unwrap();
    assert!(tap_flags(&first).contains("iff:\ttap0"));
    assert!(tap_flags(&second).contains("iff:\ttap0"));
}

#[tokio::test]
async fn a_guest_that_is_not_there_does_not_answer() {
    let Some(slot) = slot_or_skip("a_guest_that_is_not_there_does_not_answer") else { return };
    let answer = tokio::time::timeout(Duration::from_millis(200), slot.connect(49983)).await;
    match answer {
        Err(_elapsed) => {}
        Ok(Err(error)) => assert!(error.raw_os_error().is_some(), "{error}"),
        Ok(Ok(stream)) => panic!("something answered: {stream:?}"),
    }
}

#[test]
fn a_hundred_slots_leave_no_descriptor_behind() {
    let Some(_slot) = slot_or_skip("a_hundred_slots_leave_no_descriptor_behind") else { return };
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    drop(Slot::create().unwrap());
    let before = open();
    for _ in 0..100 {
        drop(Slot::create().unwrap());
    }
    // Other tests of this binary run beside it, so a few descriptors may come and go; a leak would be 100 or more.
    assert!(open() < before + 50, "{} descriptors before, {} after", before, open());
}
