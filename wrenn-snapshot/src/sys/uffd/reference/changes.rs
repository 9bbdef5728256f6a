//! Changes to an address space that a descriptor is told of. Whoever makes one waits until it is heard.
#![expect(unsafe_code, reason = "an address space that changes, and a process that is forked")]

use std::{
    mem::ManuallyDrop,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use memmap2::MmapMut;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    calls,
    outcome::{Heard, Outcome},
    side::{Backing, PAGES, PATIENCE, Side, discard},
};
use crate::{
    page::PAGE_BYTES,
    sys::uffd::{EVENT_FORK, EVENT_REMAP, EVENT_UNMAP_FEATURE, Features, Install, MISSING_SHMEM, Watched},
};

#[test]
fn a_discard_is_told_of_and_calls_are_put_off_until_it_is_heard() {
    const TEST: &str = "a_discard_is_told_of_and_calls_are_put_off_until_it_is_heard";
    for backing in [Backing::Private, Backing::Shared] {
        let seen = both(TEST, Features::EVENT_REMOVE, backing, |side| {
            let (pages, at) = ([1; PAGES as usize * PAGE_BYTES], side.addresses(&(2..4)));
            let filled = side.calls.copy(side.start(), &pages, Install::Dirty);
            let map = Arc::clone(&side.map);
            let change = std::thread::spawn(move || discard(&map, backing, &(2..4)));
            wait_until_told(side);
            let put_off = [
                side.calls.copy(at.start, &pages[..PAGE_BYTES], Install::Dirty),
                side.calls.zero(at.start),
                side.calls.unprotect(&at),
            ];
            let heard = side.calls.hear(side.start());
            wait_until_over(change);
            let filled_again = side.calls.copy(at.start, &pages[..PAGE_BYTES], Install::Clean);
            (filled, put_off, heard, filled_again, side.pagemap())
        });
        let Some([ours, theirs]) = seen else { return };
        assert_eq!(ours, theirs);
        let page = PAGE_BYTES as u64;
        assert_eq!(ours.1, [Outcome::Refused(libc::EAGAIN); 3]);
        assert_eq!(ours.2, [Heard::Removed { start: 2 * page, end: 4 * page }]);
        assert_eq!(ours.3, Outcome::Bytes(page));
    }
}

#[test]
fn what_is_unmapped_is_told_of_as_removed() {
    let seen =
        both("what_is_unmapped_is_told_of_as_removed", Features(EVENT_UNMAP_FEATURE), Backing::Private, |side| {
            let (addr, len) = last_two_pages(side);
            // SAFETY: nobody has a reference to these pages, and nobody unmaps the mapping again.
            heard_of(side, move || assert_eq!(unsafe { libc::munmap(pointer(addr), len) }, 0))
        });
    let Some([ours, theirs]) = seen else { return };
    assert_eq!(ours, theirs);
    assert_eq!(ours, [Heard::Removed { start: 6 * PAGE_BYTES as u64, end: 8 * PAGE_BYTES as u64 }]);
}

#[test]
fn what_is_moved_is_told_of_as_nothing_that_can_be_served() {
    let seen = both(
        "what_is_moved_is_told_of_as_nothing_that_can_be_served",
        Features(EVENT_REMAP),
        Backing::Private,
        |side| {
            let (addr, len) = last_two_pages(side);
            let to = ManuallyDrop::new(MmapMut::map_anon(len).expect("room")).as_ptr().expose_provenance();
            heard_of(side, move || {
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                // SAFETY: nobody has a reference to these pages, and nobody unmaps either mapping again.
                let moved = unsafe { libc::mremap(pointer(addr), len, len, flags, pointer(to as u64)) };
                assert_eq!(moved, pointer(to as u64));
            })
        },
    );
    let Some([ours, theirs]) = seen else { return };
    assert_eq!((ours, theirs), (vec![Heard::Other], vec![Heard::Other]));
}

/// The kernel puts the descriptor of the child's memory into the process that reads the event.
#[test]
fn a_child_that_is_forked_waits_for_nobody() {
    let seen = both("a_child_that_is_forked_waits_for_nobody", Features(EVENT_FORK), Backing::Private, |side| {
        let missing = side.map.as_ptr().expose_provenance();
        let (tell, child) = std::sync::mpsc::channel();
        let heard = heard_of(side, move || {
            // Not fork(3), which holds malloc's locks until it is heard, and hearing allocates.
            // SAFETY: the child reads one byte of memory that its parent keeps mapped, and ends.
            let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            if pid == 0 {
                // SAFETY: as above.
                let byte = unsafe { std::ptr::with_exposed_provenance::<u8>(missing).read_volatile() };
                // SAFETY: it runs nothing of its parent's.
                unsafe { libc::_exit(i32::from(byte)) };
            }
            tell.send(libc::pid_t::try_from(pid).expect("a process's number")).expect("somebody waits");
        });
        (heard, end_of(child.recv().expect("a child")))
    });
    let Some([ours, theirs]) = seen else { return };
    assert_eq!(ours, theirs);
    assert_eq!(ours, (vec![Heard::Other], Some(0)));
}

/// How a child ends. `None` if it does not: it is killed then.
fn end_of(pid: libc::pid_t) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut status = 0;
    // SAFETY: the kernel writes `status` alone.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
        if Instant::now() > deadline {
            // SAFETY: the child has not been waited for, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            // SAFETY: as above.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(status)
}

/// Does the same to a memory of wrenn's and of the crate's, which watch missing pages and writes.
fn both<T>(test: &str, features: Features, backing: Backing, act: impl Fn(&Side) -> T) -> Option<[T; 2]> {
    let features = features.with(Features::HOLD).with(Features(MISSING_SHMEM));
    let act = |calls| {
        let side = Side::new(calls, backing);
        let all = side.addresses(&(0..PAGES));
        assert_eq!(side.calls.register(&all, Watched::MissingAndWrites), Outcome::Done);
        act(&side)
    };
    calls::both(test, features).map(|both| both.map(act))
}

/// What is heard of a change, which is over afterwards.
fn heard_of(side: &Side, change: impl FnOnce() + Send + 'static) -> Vec<Heard> {
    let change = std::thread::spawn(change);
    wait_until_told(side);
    let heard = side.calls.hear(side.start());
    wait_until_over(change);
    heard
}

fn wait_until_over(change: JoinHandle<()>) {
    let deadline = Instant::now() + PATIENCE;
    while !change.is_finished() {
        assert!(Instant::now() < deadline, "the change waits, although it was heard");
        std::thread::yield_now();
    }
    change.join().expect("it does not panic");
}

fn wait_until_told(side: &Side) {
    let patience = PollTimeout::try_from(PATIENCE).expect("it is not that long");
    let told = poll(&mut [PollFd::new(side.calls.fd(), PollFlags::POLLIN)], patience);
    assert_eq!(told, Ok(1), "the change is not told of");
}

/// Pages that are going to be mapped otherwise: so that nobody unmaps what comes there, the mapping stays for good.
fn last_two_pages(side: &Side) -> (u64, usize) {
    std::mem::forget(Arc::clone(&side.map));
    (side.addresses(&(PAGES - 2..PAGES)).start, 2 * PAGE_BYTES)
}

fn pointer(addr: u64) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(addr).expect("it fits"))
}
