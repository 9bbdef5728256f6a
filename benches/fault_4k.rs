//! How long a thread waits for one page of 4 KiB, beside what it waits for the smallest handler there can be.
//!
//! The handler copies out of a flat buffer and knows nothing of clean and dirty. The page server reads a stored
//! generation, checks each page against its checksum, installs it write-protected, and counts.
//!
//! The rows called `_idle` and `_busy` are of a guest that works for 20 us between two faults, on 1, 2 and 16 threads, beside a
//! handler that is free to run anywhere; on processors that are idle otherwise, and with a thread on each that is always
//! busy. The page server keeps to the processor of the thread that waits there ([`ServeOptions::affinity`]).
//!
//! The rows called `_crate` have the page server beside another reference, which shares no code with wrenn: the same handler
//! by the calls of the `userfaultfd` crate.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use memory::{Backing, Memory, crates_handler, crates_uffd, plain_uffd, shuffled, smallest_handler, store};
use nix::{
    sys::eventfd::EventFd,
    time::{ClockId, clock_gettime},
};
use support::{Goal, report, report_percentiles};
use wrenn_snapshot::{
    ByteSource, Features, Generation, LocalStore, PAGE_BYTES, PageServer, PageSource, ServeOptions, Space, StopHandle,
    arm, create_uffd,
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
    for is_busy in [false, true] {
        for threads in [1, 2, 16] {
            working(&generation, &bytes, threads, is_busy);
        }
    }
}

/// What a guest waits that works between its faults, and what serving it costs.
fn working(generation: &Generation, bytes: &[u8], threads: usize, is_busy: bool) {
    let [mut served, mut reference] = [const { Vec::new() }; 2];
    let [mut of_server, mut of_reference] = [Duration::ZERO; 2];
    for round in 0..=ROUNDS_WORKING {
        let source: Box<dyn PageSource> = Box::new(generation.reader(Space::Memory).expect("a reader"));
        let (waits, processor) = beside(is_busy, || serve_working(source, threads));
        let (waits_of_reference, processor_of_reference) = beside(is_busy, || smallest_working(bytes, threads));
        // The first round warms up.
        if round > 0 {
            served.extend(waits);
            reference.extend(waits_of_reference);
            of_server += processor;
            of_reference += processor_of_reference;
        }
    }
    let name = format!("fault_4k_{}_{threads}", if is_busy { "busy" } else { "idle" });
    let at_most = if is_busy { 1.0 } else { 0.2 };
    report_percentiles(&name, "us", &served, &reference, [Goal::AtMost(at_most), Goal::None]);
    let each = |all: Duration| all.as_secs_f64() * 1e6 / f64::from(PAGES * ROUNDS_WORKING);
    report(&format!("{name}_processor"), "us", each(of_server), each(of_reference), Goal::AtMost(0.3));
}

/// Runs something while each processor has a thread that is always busy, if that is asked for.
fn beside<T>(is_busy: bool, run: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..if is_busy { processors } else { 0 } {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let result = run();
        ended.store(true, Ordering::Relaxed);
        result
    })
}

/// What each touch waits, in microseconds, with the work of a guest between them.
fn touch_working(memory: &Memory, threads: usize) -> Vec<f64> {
    let order = shuffled(PAGES);
    std::thread::scope(|scope| {
        let shares = order.chunks(order.len().div_ceil(threads));
        let touching: Vec<_> = shares.map(|pages| scope.spawn(move || touch_all(memory, pages))).collect();
        touching.into_iter().flat_map(|thread| thread.join().expect("it touches")).collect()
    })
}

fn touch_all(memory: &Memory, pages: &[u32]) -> Vec<f64> {
    let touch = |page: &u32| {
        let begun = Instant::now();
        while begun.elapsed() < WORK {
            std::hint::spin_loop();
        }
        memory.touch(*page)
    };
    pages.iter().map(touch).collect()
}

fn serve_working(source: Box<dyn PageSource>, threads: usize) -> (Vec<f64>, Duration) {
    let memory = Memory::new(PAGES, Backing::Shared);
    let uffd = create_uffd().expect("a userfaultfd");
    arm(uffd.as_fd(), &[memory.region()], Features::SERVE_AND_TRACK.with(Features::THREAD_ID)).expect("armed");
    let options = ServeOptions { affinity: Some(std::process::id()), ..page_alone() };
    let server = PageServer::new(uffd, vec![memory.region()], source, options).expect("it fits");
    let stop = StopHandle::new().expect("a handle");
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| (server.serve(&stop), processor_time_of_thread()));
        let waits = touch_working(&memory, threads);
        stop.stop();
        let (end, processor) = serving.join().expect("the server does not panic");
        drop(end);
        (waits, processor)
    })
}

fn smallest_working(bytes: &[u8], threads: usize) -> (Vec<f64>, Duration) {
    let memory = Memory::new(PAGES, Backing::Shared);
    let uffd = plain_uffd(&memory);
    let (event, ended) = (EventFd::new().expect("an eventfd"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            smallest_handler(&uffd, &event, &ended, memory.region(), bytes);
            processor_time_of_thread()
        });
        let waits = touch_working(&memory, threads);
        ended.store(true, Ordering::Relaxed);
        event.write(1).expect("signalled");
        (waits, serving.join().expect("the handler does not panic"))
    })
}

/// The processor time of the thread that asks.
fn processor_time_of_thread() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock").into()
}

/// Without the neighbours of a page.
fn page_alone() -> ServeOptions {
    ServeOptions { fault_around_bytes: u32::try_from(PAGE_BYTES).expect("small"), ..ServeOptions::default() }
}

/// What each touch of a page waits for the page server, in microseconds.
fn serve(backing: Backing, source: Box<dyn PageSource>) -> Vec<f64> {
    let memory = Memory::new(PAGES, backing);
    let uffd = create_uffd().expect("a userfaultfd");
    arm(uffd.as_fd(), &[memory.region()], Features::SERVE_AND_TRACK).expect("armed");
    let server = PageServer::new(uffd, vec![memory.region()], source, page_alone()).expect("it fits");
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
const ROUNDS_WORKING: u32 = 3;
/// What a guest does between two faults.
const WORK: Duration = Duration::from_micros(20);
