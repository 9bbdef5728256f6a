//! What the first write to a page that is there costs a guest, by how it becomes known; and what protecting the whole
//! memory costs. A live snapshot has to choose: only synchronous protection lets it keep what a page held.

use std::{os::fd::AsFd, time::Instant};

use guest::{Backing, Guest, Order, serving::Serving};
use support::{Goal, percentile, report};
use wrenn_snapshot::{
    ByteSource, DirtyTracker, Features, Granule, PAGE_BYTES, PageServer, Populate, ServeOptions, Tracking, adopt, arm,
    arm_file, create_uffd,
};

#[path = "../wrenn-snapshot/tests/guest/mod.rs"]
mod guest;
mod support;

fn main() {
    if std::env::args().any(|argument| argument == "guest_process") {
        return guest::run();
    }
    if let Err(error) = create_uffd() {
        support::skipped("first_write", &error);
        return;
    }
    first_write();
    protect();
}

/// Untracked is what comparison costs a write, and the reference.
fn first_write() {
    let ways = [("untracked", Tracking::Untracked), ("async", Tracking::Async), ("sync", Tracking::Sync)];
    for (order, suffix) in [(Order::Shuffled, ""), (Order::Ascending, "_in_order")] {
        let mut by_way = [const { (Vec::new(), Vec::new()) }; 3];
        for _ in 0..ROUNDS {
            for ((_, tracking), (mean, high)) in ways.iter().zip(&mut by_way) {
                let Some((mean_ns, high_ns)) = write(*tracking, order) else { return };
                mean.push(count(mean_ns) / 1000.0);
                high.push(count(high_ns) / 1000.0);
            }
        }
        let median = |samples: &[f64]| percentile(samples, 50);
        for ((name, _), (mean, high)) in ways.iter().zip(&by_way).skip(1) {
            let name = format!("first_write_{name}{suffix}");
            report(&format!("{name}/mean"), "us", median(mean), median(&by_way[0].0), Goal::None);
            report(&format!("{name}/p99"), "us", median(high), median(&by_way[0].1), Goal::None);
        }
    }
}

/// The mean and the 99th percentile of a write, in nanoseconds, once every page is in place.
fn write(tracking: Tracking, order: Order) -> Option<(u64, u64)> {
    let features = match tracking {
        Tracking::Async => Features::SERVE_AND_TRACK,
        Tracking::Sync => Features::SERVE_AND_TRACK_SYNC,
        Tracking::Untracked => Features::NONE,
    };
    let (mut guest, uffd) = Guest::start("first_write", PAGES)?;
    if tracking == Tracking::Untracked {
        // A handshake that asks for nothing.
        arm(uffd.as_fd(), &[], features).expect("armed");
        adopt(uffd.as_fd(), &[guest.region], tracking).expect("adopted");
    } else {
        arm_file(uffd.as_fd(), &[guest.region], features).expect("armed");
    }
    let source = ByteSource::new(vec![1; PAGES as usize * PAGE_BYTES]).expect("whole pages");
    let options = ServeOptions {
        tracking,
        populate: Populate::InBackground { bytes_per_second: 1 << 40 },
        ..ServeOptions::default()
    };
    let server = PageServer::new(uffd, vec![guest.region], Box::new(source), options).expect("it fits");
    let serving = Serving::start(server);
    serving.wait_for(|report| report.pages == report.total_pages);
    // Page tables of what was put in place.
    guest.touch(Order::Ascending, PAGES, PAGES);
    let waits = guest.touch_to_write(order, PAGES, PAGES);
    serving.end();
    Some(waits)
}

/// How long registering and protecting memory takes that is all there, which a live snapshot does while the guest is
/// stopped; beside a scan that protects the same again.
fn protect() {
    let (mut arming, mut scanning) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let Some((mut guest, uffd)) = Guest::start_on("protect", Backing::Shared, LARGE_PAGES) else { return };
        assert_eq!(guest.region.granule, Granule::Kib4);
        guest.touch_to_write(Order::Shuffled, LARGE_PAGES, LARGE_PAGES);
        let started = Instant::now();
        arm(uffd.as_fd(), &[guest.region], Features::SERVE_AND_TRACK).expect("armed");
        arming.push(started.elapsed().as_secs_f64() * 1e3);
        guest.touch_to_write(Order::Shuffled, LARGE_PAGES, LARGE_PAGES);
        let mut tracker = DirtyTracker::new(guest.pagemap(), vec![guest.region]).expect("whole pages");
        let started = Instant::now();
        tracker.collect().expect("a scan");
        scanning.push(started.elapsed().as_secs_f64() * 1e3);
    }
    report("protect_256m", "ms", percentile(&arming, 50), percentile(&scanning, 50), Goal::None);
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn count(number: u64) -> f64 {
    number as f64
}

const PAGES: u32 = 4096;
/// 256 MiB.
const LARGE_PAGES: u32 = 64 << 10;
const ROUNDS: u32 = 5;
