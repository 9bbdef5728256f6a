//! How fast a page server puts a whole memory in place, beside bare `UFFDIO_COPY`s of 256 KiB; and, in the rows called
//! `_crate`, beside those of the `userfaultfd` crate.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use memory::{Backing, Memory, copy, crates_copy, crates_uffd, plain_uffd};
use support::{Goal, report};
use wrenn_snapshot::{
    ByteSource, Features, LocalStore, PAGE_BYTES, PageServer, PageSource, ServeOptions, Space, arm, create_uffd,
};

mod memory;
mod support;

fn main() {
    if let Err(error) = create_uffd() {
        support::skipped("populate", &error);
        return;
    }
    let bytes = memory::pattern(PAGES);
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let generation = memory::store(&store, &bytes);
    for (name, backing) in [("populate", Backing::Shared), ("populate_private", Backing::Private)] {
        let flat = || Box::new(ByteSource::new(bytes.clone()).expect("whole pages"));
        let stored = || Box::new(generation.reader(Space::Memory).expect("a reader"));
        let [of_flat, reference] =
            support::in_turns(ROUNDS, PAGES, || populate(backing, flat()), || populate_bare(backing, &bytes));
        let [of_store, reference_2] =
            support::in_turns(ROUNDS, PAGES, || populate(backing, stored()), || populate_bare(backing, &bytes));
        let [of_flat_3, by_crate] =
            support::in_turns(ROUNDS, PAGES, || populate(backing, flat()), || populate_by_crate(backing, &bytes));
        let rate = |ns: &[f64]| PAGE_BYTES as f64 / support::percentile(ns, 50);
        report(name, "GB/s", rate(&of_flat), rate(&reference), Goal::AtLeast(0.85));
        report(&format!("{name}_stored"), "GB/s", rate(&of_store), rate(&reference_2), Goal::None);
        report(&format!("{name}_crate"), "GB/s", rate(&of_flat_3), rate(&by_crate), Goal::None);
    }
}

fn populate(backing: Backing, source: Box<dyn PageSource>) -> Duration {
    let memory = Memory::new(PAGES, backing);
    let uffd = create_uffd().expect("a userfaultfd");
    arm(uffd.as_fd(), &[memory.region()], Features::SERVE_AND_TRACK).expect("armed");
    let mut server = PageServer::new(uffd, vec![memory.region()], source, ServeOptions::default()).expect("it fits");
    let started = Instant::now();
    server.populate_all().expect("populated");
    started.elapsed()
}

fn populate_bare(backing: Backing, bytes: &[u8]) -> Duration {
    let memory = Memory::new(PAGES, backing);
    let uffd = plain_uffd(&memory);
    let started = Instant::now();
    for (chunk, addr) in bytes.chunks(256 << 10).zip((memory.region().host_addr..).step_by(256 << 10)) {
        copy(&uffd, addr, chunk);
    }
    started.elapsed()
}

fn populate_by_crate(backing: Backing, bytes: &[u8]) -> Duration {
    let memory = Memory::new(PAGES, backing);
    let uffd = crates_uffd(&memory);
    let started = Instant::now();
    for (chunk, offset) in bytes.chunks(256 << 10).zip((0..).step_by(256 << 10)) {
        crates_copy(&uffd, &memory, offset, chunk);
    }
    started.elapsed()
}

const PAGES: u32 = 32 << 10;
const ROUNDS: usize = 7;
