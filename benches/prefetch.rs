//! What a recorded working set saves a restore, and what reading ahead costs a fault that comes meanwhile.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use guest::{Guest, Order, serving::Serving};
use support::{Goal, percentile, report};
use wrenn_snapshot::{
    Features, Generation, LocalStore, PageRange, PageServer, RestoreReport, ServeOptions, Space, WorkingSet,
    create_uffd,
};

#[path = "../wrenn-snapshot/tests/guest/mod.rs"]
mod guest;
mod memory;
mod support;

fn main() {
    if std::env::args().any(|argument| argument == "guest_process") {
        return guest::run();
    }
    if let Err(error) = create_uffd() {
        support::skipped("prefetch", &error);
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let bytes = memory::pattern(PAGES);
    let generation = memory::store(&store, &bytes);
    // The machine may be virtual itself, and slow to get memory that it has not used yet.
    let whole = Touching { pages: PAGES, among: PAGES, head_start: Duration::ZERO, beside: None };
    whole.run(&generation, ServeOptions::default());
    working_set(&generation);
    faults_meanwhile(&generation, &bytes[bytes.len() / 2..]);
}

/// A guest that touches 4096 pages of 32 MiB in no order, with the default window, beside the same with what it touched before
/// read ahead. It does nothing else, and starts a while after the server: at once, or once a VMM would have loaded the
/// state of its devices.
fn working_set(generation: &Generation) {
    for (name, head_start_ms) in [("at_once", 0), ("after_20_ms", 20)] {
        let [mut faults, mut faults_reference, mut time, mut time_reference] = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            let head_start = Duration::from_millis(head_start_ms);
            let guest = Touching { pages: TOUCHED, among: AMONG, head_start, beside: None };
            let options = ServeOptions { record_pages_max: PAGES, ..ServeOptions::default() };
            let Some(first) = guest.run(generation, options) else { return };
            let options = ServeOptions { prefetch: Some(first.touched), ..ServeOptions::default() };
            let Some(second) = guest.run(generation, options) else { return };
            faults_reference.push(count(first.report.faults));
            time_reference.push(first.mean_us * f64::from(TOUCHED) / 1000.0);
            faults.push(count(second.report.faults));
            time.push(second.mean_us * f64::from(TOUCHED) / 1000.0);
        }
        let median = |samples: &[f64]| percentile(samples, 50);
        let goals = if head_start_ms > 0 { [Goal::AtMost(0.1), Goal::AtMost(0.7)] } else { [Goal::None; 2] };
        report(&format!("prefetch_{name}/faults"), "", median(&faults), median(&faults_reference), goals[0]);
        report(&format!("prefetch_{name}/time"), "ms", median(&time), median(&time_reference), goals[1]);
    }
}

/// A guest that touches pages of the first half while the second half is read ahead, beside the same without: by the
/// server's own thread, and by another that copies out of a flat buffer.
fn faults_meanwhile(generation: &Generation, bytes: &[u8]) {
    let mut set = WorkingSet::new();
    set.record(PageRange::new(PAGES / 2, PAGES / 2));
    let ways = [("nothing", None, None), ("own_thread", Some(set), None), ("other_thread", None, Some(bytes))];
    let mut by_way = [const { (Vec::new(), Vec::new()) }; 3];
    for _ in 0..ROUNDS {
        for ((_, prefetch, beside), (mean, high)) in ways.iter().zip(&mut by_way) {
            let options =
                ServeOptions { prefetch: prefetch.clone(), fault_around_bytes: 4096, ..ServeOptions::default() };
            let guest = Touching { pages: MEANWHILE, among: PAGES / 2, head_start: Duration::ZERO, beside: *beside };
            let Some(sample) = guest.run(generation, options) else { return };
            mean.push(sample.mean_us);
            high.push(sample.p99_us);
        }
    }
    let median = |samples: &[f64]| percentile(samples, 50);
    for ((name, ..), (mean, high)) in ways.iter().zip(&by_way).skip(1) {
        let (mean_reference, high_reference) = &by_way[0];
        report(&format!("fault_beside_{name}/mean"), "us", median(mean), median(mean_reference), Goal::None);
        report(&format!("fault_beside_{name}/p99"), "us", median(high), median(high_reference), Goal::None);
    }
}

struct Sample {
    mean_us: f64,
    p99_us: f64,
    report: RestoreReport,
    touched: WorkingSet,
}

/// A guest that touches `pages` of the first `among` pages.
struct Touching<'a> {
    pages: u32,
    among: u32,
    /// How long the server has before the guest starts.
    head_start: Duration,
    /// What another thread copies into the second half meanwhile.
    beside: Option<&'a [u8]>,
}

impl Touching<'_> {
    fn run(&self, generation: &Generation, options: ServeOptions) -> Option<Sample> {
        let (mut guest, uffd, _) = Guest::armed("prefetch", PAGES, Features::SERVE_AND_TRACK)?;
        let copy_to = uffd.try_clone().expect("a copy");
        let source = Box::new(generation.reader(Space::Memory).expect("a reader"));
        let server = PageServer::new(uffd, vec![guest.region], source, options).expect("it fits");
        let touched = server.touched_pages();
        let serving = Serving::start(server);
        std::thread::sleep(self.head_start);
        let half_addr = guest.region.host_addr + guest.region.len_bytes / 2;
        let ended = AtomicBool::new(false);
        let (mean_ns, p99_ns) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let chunks = self.beside.unwrap_or_default().chunks(256 << 10);
                for (chunk, addr) in chunks.zip((half_addr..).step_by(256 << 10)) {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    memory::copy(&copy_to, addr, chunk);
                }
            });
            let waits = guest.touch(Order::Shuffled, self.pages, self.among);
            ended.store(true, Ordering::Relaxed);
            waits
        });
        let touched = touched.working_set();
        let (mean_us, p99_us) = (count(mean_ns) / 1000.0, count(p99_ns) / 1000.0);
        Some(Sample { mean_us, p99_us, report: serving.end(), touched })
    }
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn count(number: u64) -> f64 {
    number as f64
}

/// 512 MiB.
const PAGES: u32 = 128 << 10;
const TOUCHED: u32 = 4096;
/// 32 MiB: a guest is not all over its memory.
const AMONG: u32 = 8192;
const MEANWHILE: u32 = 500;
const ROUNDS: u32 = 9;
