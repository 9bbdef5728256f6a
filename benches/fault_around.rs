//! What a page costs a guest in another process, by how much is put in place around a fault.
//!
//! Three guests: one reads its memory in order, one reads all of it in no order, and one reads every 16th page in no
//! order, for which each neighbour is wasted.

use guest::{Guest, Order, serving::Serving};
use support::{Goal, report};
use wrenn_snapshot::{Features, Generation, LocalStore, PageServer, ServeOptions, Space, create_uffd};

#[path = "../wrenn-snapshot/tests/guest/mod.rs"]
mod guest;
mod memory;
mod support;

fn main() {
    if std::env::args().any(|argument| argument == "guest_process") {
        return guest::run();
    }
    if let Err(error) = create_uffd() {
        support::skipped("fault_around", &error);
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let store = LocalStore::open(dir.path()).expect("a store");
    let generation = memory::store(&store, &memory::pattern(PAGES));
    let guests = [
        ("in_order", Order::Ascending, PAGES),
        ("shuffled", Order::Shuffled, PAGES),
        ("sparse", Order::Shuffled, PAGES / 16),
    ];
    for (name, order, pages) in guests {
        let mut by_window = vec![Vec::new(); WINDOWS_KIB.len()];
        for _ in 0..ROUNDS {
            for (window_kib, samples) in WINDOWS_KIB.iter().zip(&mut by_window) {
                samples.extend(run(&generation, *window_kib, order, pages));
            }
        }
        let mean = |samples: &[Sample]| {
            support::percentile(&samples.iter().map(|sample| sample.mean_us).collect::<Vec<_>>(), 50)
        };
        for (window_kib, samples) in WINDOWS_KIB.iter().zip(&by_window) {
            report(&format!("fault_around_{window_kib}k/{name}"), "us", mean(samples), mean(&by_window[0]), Goal::None);
            let high = support::percentile(&samples.iter().map(|sample| sample.p99_us).collect::<Vec<_>>(), 50);
            let installed = samples.first().map_or(0.0, |sample| sample.installed);
            support::note(&format!("p99 of a touch {high:.1} us, {installed:.2} pages in place for each touched"));
        }
    }
}

#[derive(Clone, Copy)]
struct Sample {
    mean_us: f64,
    p99_us: f64,
    /// Pages that are put in place, for each that is touched.
    installed: f64,
}

fn run(generation: &Generation, window_kib: u32, order: Order, pages: u32) -> Option<Sample> {
    let (mut guest, uffd, _) = Guest::armed("fault_around", PAGES, Features::SERVE_AND_TRACK)?;
    let options = ServeOptions { fault_around_bytes: window_kib << 10, ..ServeOptions::default() };
    let source = Box::new(generation.reader(Space::Memory).expect("a reader"));
    let serving = Serving::start(PageServer::new(uffd, vec![guest.region], source, options).expect("it fits"));
    let (mean_ns, p99_ns) = guest.touch(order, pages, PAGES);
    let report = serving.end();
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let sample = Sample {
        mean_us: mean_ns as f64 / 1000.0,
        p99_us: p99_ns as f64 / 1000.0,
        installed: report.pages as f64 / f64::from(pages),
    };
    Some(sample)
}

const WINDOWS_KIB: [u32; 6] = [4, 16, 32, 64, 256, 1024];
/// 64 MiB.
const PAGES: u32 = 16 << 10;
const ROUNDS: u32 = 5;
