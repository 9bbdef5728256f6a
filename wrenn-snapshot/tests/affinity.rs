//! The page server and the one thread that waits for it keep to one processor, for as long as that lasts.

#![expect(clippy::print_stdout, reason = "what is skipped is reported by the runner")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use guest::{Guest, Order, serving::Serving};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use wrenn_snapshot::{Error, Features, PAGE_BYTES, PageIndex, PageRun, PageServer, PageSource, ServeOptions};

mod guest;

#[test]
#[ignore = "the other process of the tests here; they start it"]
fn guest_process() {
    guest::run();
}

#[test]
fn a_thread_that_waits_for_page_after_page_shares_the_servers_processor() {
    let name = "a_thread_that_waits_for_page_after_page_shares_the_servers_processor";
    let Some((together, free)) = serve_a_burst(name, Features::SERVE_AND_TRACK.with(Features::THREAD_ID), |pid| pid)
    else {
        return;
    };
    // On a machine that is busy, two faults may be too far apart to be a burst.
    assert!(together > PAGES / 100, "{together} of {PAGES} faults were served on the same processor");
    assert!(free > 0, "the first fault of a burst binds nobody");
}

#[test]
fn nobody_is_bound_where_the_thread_is_not_known() {
    let untold = "nobody_is_bound_where_the_thread_is_not_known";
    if let Some((together, _)) = serve_a_burst(untold, Features::SERVE_AND_TRACK, |pid| pid) {
        assert_eq!(together, 0, "the kernel was not asked which thread waits");
    }
    // As it is where the guest is in a namespace of processes of its own: its threads have other numbers here.
    let features = Features::SERVE_AND_TRACK.with(Features::THREAD_ID);
    if let Some((together, _)) = serve_a_burst(untold, features, |_| std::process::id()) {
        assert_eq!(together, 0, "the thread is none of that process");
    }
}

/// How many faults of a burst were served with both on one processor, and how many with both free. Afterwards both are.
fn serve_a_burst(test: &str, features: Features, of: impl Fn(u32) -> u32) -> Option<(u32, u32)> {
    let all = processors_of(0);
    if all.len() < 2 {
        println!("skipped: {test}: this process may run on one processor alone");
        return None;
    }
    let (mut guest, uffd, _tracker) = Guest::armed(test, PAGES, features)?;
    let seen = Arc::new(Seen::default());
    let source = Box::new(Watching { guest: guest.pid(), seen: Arc::clone(&seen) });
    let page = u32::try_from(PAGE_BYTES).expect("small");
    let options = ServeOptions { affinity: Some(of(guest.pid())), fault_around_bytes: page, ..ServeOptions::default() };
    let server = PageServer::new(uffd, vec![guest.region], source, options).expect("it fits");
    let serving = Serving::start(server);

    guest.touch(Order::Shuffled, PAGES, PAGES);

    let began = Instant::now();
    while narrowest_of(guest.pid()) != all {
        assert!(began.elapsed() < Duration::from_secs(10), "the guest's thread was not let go");
        std::thread::sleep(Duration::from_millis(1));
    }
    serving.end();
    assert_eq!(seen.apart.load(Ordering::Relaxed), 0, "one was bound and the other was not");
    Some((seen.together.load(Ordering::Relaxed), seen.free.load(Ordering::Relaxed)))
}

#[derive(Debug, Default)]
struct Seen {
    together: AtomicU32,
    free: AtomicU32,
    apart: AtomicU32,
}

/// Looks where both may run whenever a page is wanted, which is while the guest's thread waits for it.
struct Watching {
    guest: u32,
    seen: Arc<Seen>,
}

impl PageSource for Watching {
    fn page_count(&self) -> u32 {
        PAGES
    }

    fn run<'a>(&'a self, _: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>, Error> {
        let (server, guest) = (processors_of(0), narrowest_of(self.guest));
        let count = match (server.len(), guest.len()) {
            (1, 1) if server == guest => &self.seen.together,
            (of_server, of_guest) if of_server > 1 && of_guest > 1 => &self.seen.free,
            _ => &self.seen.apart,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let pages = &mut scratch[..pages_max as usize * PAGE_BYTES];
        pages.fill(1);
        Ok(PageRun::Data(pages))
    }
}

/// Where the thread of a process may run that may on the fewest: one of it touches memory, and others wait for it.
fn narrowest_of(process: u32) -> Vec<usize> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it is there");
    let threads = threads.map(|entry| entry.expect("a thread").file_name().into_string().expect("a number"));
    let all = threads.map(|thread| processors_of(thread.parse().expect("a number")));
    all.min_by_key(Vec::len).expect("it has a thread")
}

/// Where a thread may run; 0 is the one that asks.
fn processors_of(thread: u32) -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(thread.cast_signed())).expect("it is there");
    (0..CpuSet::count()).filter(|processor| set.is_set(*processor).expect("a number of the set")).collect()
}

const PAGES: u32 = 2000;
