//! How long a thread waits for one page of 4 KiB, beside what it waits for the smallest handler there can be.
//!
//! The handler copies out of a flat buffer and knows nothing of clean and dirty. The page server reads a stored
//! generation, checks each page against its checksum, installs it write-protected, and counts.
//!
//! The rows called `_crate` have the page server beside another reference, which shares no code with wrenn: the same handler
//! by the calls of the `userfaultfd` crate.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
};

use memory::{Backing, Memory, crates_handler, crates_uffd, plain_uffd, shuffled, smallest_handler, store};
use nix::sys::eventfd::EventFd;
use support::{Goal, report_percentiles};
use wrenn_snapshot::{
    ByteSource, Features, LocalStore, PAGE_BYTES, PageServer, PageSource, ServeOptions, Space, StopHandle, arm,
    create_uffd,
};

mod memory;
mod support;

fn main() {
    if let Err(error) = create_uffd() {
        support::skipped("fault_4k", &error);
        return;
    }
    let bytes = memory::pattern(PAGES);
    let dir = tempfile::tempdir().expect("a directory");
    let generation = store(&LocalStore::open(dir.path()).expect("a store"), &bytes);
    for (name, backing) in [("fault_4k", Backing::Shared), ("fault_4k_private", Backing::Private)] {
        let [mut served, mut flat, mut reference, mut by_crate] = [const { Vec::new() }; 4];
        for round in 0..=ROUNDS {
            let from_store: Box<dyn PageSource> = Box::new(generation.reader(Space::Memory).expect("a reader"));
            let from_memory: Box<dyn PageSource> = Box::new(ByteSource::new(bytes.clone()).expect("whole pages"));
            let of_server = serve(backing, from_store);
            let of_reference = serve_smallest(backing, &bytes);
            let of_flat = serve(backing, from_memory);
            let of_crate = serve_by_crate(backing, &bytes);
            // The first round warms up.
            if round > 0 {
                served.extend(of_server);
                reference.extend(of_reference);
                flat.extend(of_flat);
                by_crate.extend(of_crate);
            }
        }
        let goals = [Goal::AtMost(1.25), Goal::AtMost(1.5)];
        report_percentiles(name, "us", &served, &reference, goals);
        report_percentiles(&format!("{name}_flat"), "us", &flat, &reference, [Goal::None; 2]);
        report_percentiles(&format!("{name}_crate"), "us", &served, &by_crate, [Goal::None; 2]);
    }
}

/// What each touch of a page waits for the page server, in microseconds.
fn serve(backing: Backing, source: Box<dyn PageSource>) -> Vec<f64> {
    let memory = Memory::new(PAGES, backing);
    let uffd = create_uffd().expect("a userfaultfd");
    arm(uffd.as_fd(), &[memory.region()], Features::SERVE_AND_TRACK).expect("armed");
    let options =
        ServeOptions { fault_around_bytes: u32::try_from(PAGE_BYTES).expect("small"), ..ServeOptions::default() };
    let server = PageServer::new(uffd, vec![memory.region()], source, options).expect("it fits");
    let stop = StopHandle::new().expect("a handle");
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve(&stop));
        let samples = shuffled(PAGES).into_iter().map(|page| memory.touch(page)).collect();
        stop.stop();
        drop(serving.join().expect("the server does not panic"));
        samples
    })
}

fn serve_smallest(backing: Backing, bytes: &[u8]) -> Vec<f64> {
    let memory = Memory::new(PAGES, backing);
    let uffd = plain_uffd(&memory);
    let (event, ended) = (EventFd::new().expect("an eventfd"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| smallest_handler(&uffd, &event, &ended, memory.region(), bytes));
        let samples = shuffled(PAGES).into_iter().map(|page| memory.touch(page)).collect();
        ended.store(true, Ordering::Relaxed);
        event.write(1).expect("signalled");
        samples
    })
}

fn serve_by_crate(backing: Backing, bytes: &[u8]) -> Vec<f64> {
    let memory = Memory::new(PAGES, backing);
    let uffd = crates_uffd(&memory);
    let (event, ended) = (EventFd::new().expect("an eventfd"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| crates_handler(&uffd, &event, &ended, &memory, bytes));
        let samples = shuffled(PAGES).into_iter().map(|page| memory.touch(page)).collect();
        ended.store(true, Ordering::Relaxed);
        event.write(1).expect("signalled");
        samples
    })
}

const PAGES: u32 = 4096;
const ROUNDS: u32 = 10;
