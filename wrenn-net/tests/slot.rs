//! Slots on the real kernel: real namespaces and taps. Skipped by name where the process may not make them.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use wrenn_net::{NetError, Slot, Tap};

fn slot_or_skip(test: &str) -> Option<(Slot, Tap)> {
    match Slot::create() {
        Ok((slot, tap, _gate)) => Some((slot, tap)),
        Err(error @ (NetError::Permission { .. } | NetError::NoTunDevice(_) | NetError::TunForbidden(_))) => {
            println!("skipped: {test}: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn tap_flags(tap: Tap) -> String {
    let queue = tap.into_queue();
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", queue.as_raw_fd())).unwrap()
}

/// The devices of a namespace.
fn devices(namespace: BorrowedFd<'_>) -> String {
    std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::read_to_string("/proc/thread-self/net/dev").unwrap()
        });
        look.join().unwrap()
    })
}

#[test]
fn slots_have_the_same_names_and_do_not_collide() {
    let Some((_first, first_tap)) = slot_or_skip("slots_have_the_same_names_and_do_not_collide") else { return };
    let (_second, second_tap, _gate) = Slot::create().unwrap();
    assert!(tap_flags(first_tap).contains("iff:\ttap0"));
    assert!(tap_flags(second_tap).contains("iff:\ttap0"));
}

#[test]
fn a_tap_that_is_left_to_a_vmm_outlives_its_queue_and_others_do_not() {
    let test = "a_tap_that_is_left_to_a_vmm_outlives_its_queue_and_others_do_not";
    let Some((slot, tap)) = slot_or_skip(test) else { return };
    tap.leave_to(65_534).unwrap();
    assert!(devices(slot.namespace()).contains(Tap::NAME));
    let (slot, tap, _gate) = Slot::create().unwrap();
    assert!(devices(slot.namespace()).contains(Tap::NAME));
    drop(tap.into_queue());
    assert!(!devices(slot.namespace()).contains(Tap::NAME));
}

#[tokio::test]
async fn a_guest_that_is_not_there_does_not_answer() {
    let Some((slot, _tap)) = slot_or_skip("a_guest_that_is_not_there_does_not_answer") else { return };
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
