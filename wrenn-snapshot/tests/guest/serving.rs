//! A page server on a thread of its own, and a source that can be held up.

use std::{
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use wrenn_snapshot::{
    ByteSource, EndReason, PageIndex, PageRange, PageRun, PageServer, PageSource, Region, RestoreReport, Result,
    ServeCounters, ServeEnd, ServeOptions, StopHandle, Uffd,
};

pub(crate) struct Serving {
    pub(crate) thread: JoinHandle<ServeEnd>,
    pub(crate) stop: StopHandle,
    pub(crate) counters: Arc<ServeCounters>,
}

impl Serving {
    pub(crate) fn start(server: PageServer) -> Self {
        let stop = StopHandle::new().expect("a handle");
        let counters = server.counters();
        let handle = stop.clone();
        Self { thread: std::thread::spawn(move || server.serve(&handle)), stop, counters }
    }

    pub(crate) fn bytes(uffd: impl Into<Uffd>, regions: Vec<Region>, memory: Vec<u8>, options: ServeOptions) -> Self {
        let source = ByteSource::new(memory).expect("whole pages");
        Self::start(PageServer::new(uffd, regions, Box::new(source), options).expect("the regions fit"))
    }

    /// Waits until the server ends by itself.
    pub(crate) fn join(self) -> ServeEnd {
        self.thread.join().expect("the server does not panic")
    }

    /// Stops the server. Its counts are final then; before, they may lag behind what the guest has seen.
    pub(crate) fn end(self) -> RestoreReport {
        let counters = Arc::clone(&self.counters);
        self.stop.stop();
        let end = self.join();
        assert!(matches!(end.reason, EndReason::Stopped), "{end:?}");
        counters.report()
    }

    /// Waits until what the server reports is as wanted.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&RestoreReport) -> bool) {
        let started = std::time::Instant::now();
        while !wanted(&self.counters.report()) {
            assert!(started.elapsed() < PATIENCE, "{:?}", self.counters.report());
            std::thread::yield_now();
        }
    }
}

/// Pages in memory, of which some keep their reader waiting while the gate is closed.
pub(crate) struct Gated {
    pages: ByteSource,
    behind: PageRange,
    gate: Arc<Gate>,
}

#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_open: bool,
    waits: bool,
}

impl Gated {
    pub(crate) fn new(bytes: Vec<u8>, behind: PageRange) -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (Self { pages: ByteSource::new(bytes).expect("whole pages"), behind, gate: Arc::clone(&gate) }, gate)
    }
}

impl PageSource for Gated {
    fn page_count(&self) -> u32 {
        self.pages.page_count()
    }

    fn run<'a>(&'a self, first: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>> {
        let end = u64::from(first.0) + u64::from(pages_max);
        if u64::from(first.0) < self.behind.end() && u64::from(self.behind.start.0) < end {
            self.gate.pass();
        }
        self.pages.run(first, pages_max, scratch)
    }
}

impl Gate {
    /// Waits until a reader waits.
    pub(crate) fn wait_for_reader(&self) {
        let state = self.state.lock().expect("nobody panics");
        let waited = self.changed.wait_timeout_while(state, PATIENCE, |state| !state.waits);
        assert!(!waited.expect("nobody panics").1.timed_out(), "nobody reads");
    }

    pub(crate) fn open(&self) {
        self.state.lock().expect("nobody panics").is_open = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().expect("nobody panics");
        state.waits = true;
        self.changed.notify_all();
        let passed = self.changed.wait_timeout_while(state, PATIENCE, |state| !state.is_open);
        drop(passed.expect("nobody panics"));
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
