//! What compressing a generation saves and costs, on the memory of a real guest: bytes, the time to write them, and the
//! wait for a page that is touched, alone and with the default window around it. Plain pages are the reference.
//!
//! All files are in the page cache. What is read from a slow disk or a network gains what is saved in bytes.

use std::time::Instant;

use guest::{Guest, Order, serving::Serving};
use support::{Goal, percentile, report};
use wrenn_core::default_data_dir;
use wrenn_snapshot::{
    Compression, Features, Generation, LocalStore, PAGE_BYTES, PageIndex, PageRange, PageRun, PageServer, PageSource,
    ServeOptions, Space, create_uffd,
};

#[path = "../wrenn-snapshot/tests/guest/mod.rs"]
mod guest;
mod support;

fn main() {
    if std::env::args().any(|argument| argument == "guest_process") {
        return guest::run();
    }
    if let Err(error) = create_uffd() {
        return support::skipped("compression", &error);
    }
    let memory = match guest_memory() {
        Ok(memory) => memory,
        Err(error) => return support::skipped("compression", &*error),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let ways = [("plain", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)];
    let stored = ways.map(|(_, way)| write(&store.clone().with_compression(way), &memory));
    for ((name, _), (generation, ms)) in ways.iter().zip(&stored).skip(1) {
        let [bytes, plain] = [generation, &stored[0].0].map(|generation| count(generation.written_bytes()));
        report(&format!("compression_{name}/bytes"), "B", bytes, plain, Goal::AtMost(0.6));
        report(&format!("compression_{name}/write"), "ms", *ms, stored[0].1, Goal::None);
    }
    for (window, fault_around_bytes) in [("4k", 4 << 10), ("64k", 64 << 10)] {
        let mut waits = [const { (Vec::new(), Vec::new()) }; 3];
        for _ in 0..ROUNDS {
            for ((generation, _), (mean, high)) in stored.iter().zip(&mut waits) {
                let Some(sample) = touch(generation, fault_around_bytes) else { return };
                mean.push(sample.0);
                high.push(sample.1);
            }
        }
        let medians = waits.map(|(mean, high)| (percentile(&mean, 50), percentile(&high, 50)));
        for ((name, _), (mean, high)) in ways.iter().zip(medians).skip(1) {
            report(&format!("compression_{name}/fault_{window}/mean"), "us", mean, medians[0].0, Goal::None);
            report(&format!("compression_{name}/fault_{window}/p99"), "us", high, medians[0].1, Goal::None);
        }
    }
}

/// The pages that a guest has written, without those between, of the largest memory that is stored here.
fn guest_memory() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let store = LocalStore::open(default_data_dir().join("generations"))?;
    let own = |generation: &Generation| generation.space(Space::Memory).map_or(0, |stats| stats.own_data_pages);
    let generations = store.list()?.into_iter().filter_map(|id| store.load(id).ok());
    let largest = generations.max_by_key(own).filter(|largest| own(largest) > 0);
    let largest = largest.ok_or("no guest's memory is stored here: run `cargo xtask quickstart`")?;
    let reader = largest.reader(Space::Memory)?;
    let (mut memory, mut scratch, mut page) = (Vec::new(), vec![0; 1 << 20], 0);
    while page < reader.page_count() {
        let run = reader.run(PageIndex(page), u32::MAX, &mut scratch)?;
        page += run.pages();
        if let PageRun::Data(bytes) = run {
            memory.extend_from_slice(bytes);
        }
    }
    Ok(memory)
}

fn write(store: &LocalStore, memory: &[u8]) -> (Generation, f64) {
    let started = Instant::now();
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, memory, &[PageRange::new(0, pages(memory.len() as u64))]).expect("written");
    let generation = pending.publish(b"").expect("published");
    (generation, started.elapsed().as_secs_f64() * 1e3)
}

/// The mean wait, and the 99th percentile, in microseconds, of a guest that touches pages in no order.
fn touch(generation: &Generation, fault_around_bytes: u32) -> Option<(f64, f64)> {
    let reader = generation.reader(Space::Memory).expect("a reader");
    let all = reader.page_count();
    let (mut guest, uffd, _) = Guest::armed("compression", all, Features::SERVE_AND_TRACK)?;
    let options = ServeOptions { fault_around_bytes, ..ServeOptions::default() };
    let server = PageServer::new(uffd, vec![guest.region], Box::new(reader), options).expect("it fits");
    let serving = Serving::start(server);
    let (mean_ns, p99_ns) = guest.touch(Order::Shuffled, TOUCHED, all);
    serving.end();
    Some((count(mean_ns) / 1000.0, count(p99_ns) / 1000.0))
}

fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_BYTES as u64).expect("few pages")
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn count(number: u64) -> f64 {
    number as f64
}

const TOUCHED: u32 = 2048;
const ROUNDS: usize = 5;
