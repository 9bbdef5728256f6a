//! One processor for the page server and for the thread that waits for it.
//!
//! A thread that touches page after page sleeps while each is fetched. If the server runs on another processor, which
//! is idle meanwhile, each fault wakes two idle processors; if both have one, it is two switches between threads, which
//! is a tenth of the time (benches/fault_4k.rs). The scheduler never finds that out: a thread that is woken goes to an
//! idle processor.
//!
//! ```text
//!             the same thread again, GAP after its last fault at most
//!   free ────────────────────────────────────────────────────────────► bound to the server's processor
//!    ▲                                                                   │
//!    └── another thread faults, no fault for GAP, or bound for BURST ◄───┘
//! ```
//!
//! Several threads that fault at once are left where they are: they keep each other's processors awake.
//!
//! What it takes is asked for as it goes. Where the kernel refuses it, such as for a thread of another user, all stay free.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use crate::sys::uffd::Event;

/// The server's side of it.
#[derive(Debug)]
pub(crate) struct Companion {
    /// The process whose threads fault, while it is worth to ask.
    process: Option<u32>,
    /// The last thread of it that has faulted, and when.
    last: Option<(u32, Instant)>,
    /// The last thread that was found to be one of the process.
    known: Option<u32>,
    bound: Option<Bound>,
}

/// A thread and the server, on one processor.
#[derive(Debug)]
struct Bound {
    thread: u32,
    since: Instant,
    /// Where they may run otherwise.
    of_thread: CpuSet,
    of_server: CpuSet,
}

impl Companion {
    pub(crate) fn new(process: Option<u32>) -> Self {
        Self { process, last: None, known: None, bound: None }
    }

    pub(crate) fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// Takes note of what the kernel has told at `now`, on the server's thread.
    pub(crate) fn told(&mut self, events: &[Event], now: Instant) {
        let Some(process) = self.process else { return };
        let mut threads = events.iter().filter_map(|event| match event {
            Event::Missing { thread, .. } => Some(*thread),
            _ => None,
        });
        let Some(thread) = threads.next() else {
            if self.last.is_some_and(|(_, at)| now - at >= GAP) {
                self.release();
            }
            return;
        };
        let is_alone = threads.all(|other| other == thread);
        let again = self.last.replace((thread, now)).is_some_and(|(last, at)| last == thread && now - at < GAP);
        match &self.bound {
            Some(bound) if !is_alone || bound.thread != thread || now - bound.since > BURST => self.release(),
            None if is_alone && again && thread != 0 => self.bind(process, thread, now),
            _ => {}
        }
    }

    fn bind(&mut self, process: u32, thread: u32, now: Instant) {
        // In a namespace of its own, a thread has another number here.
        if self.known != Some(thread) && !Path::new(&format!("/proc/{process}/task/{thread}")).exists() {
            self.process = None;
            return;
        }
        self.known = Some(thread);
        self.bound = bind(thread, now);
        if self.bound.is_none() {
            self.process = None;
        }
    }

    fn release(&mut self) {
        if let Some(bound) = self.bound.take() {
            // The thread may have ended, and where either may run can have been narrowed by others meanwhile.
            let _ = sched_setaffinity(pid(bound.thread), &bound.of_thread);
            let _ = sched_setaffinity(OWN, &bound.of_server);
        }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        self.release();
    }
}

/// `None` where the kernel or the caller's own settings do not let them run there.
fn bind(thread: u32, now: Instant) -> Option<Bound> {
    let (of_thread, of_server) = (sched_getaffinity(pid(thread)).ok()?, sched_getaffinity(OWN).ok()?);
    let processor = sched_getcpu().ok()?;
    let mut one = CpuSet::new();
    one.set(processor).ok()?;
    if !of_thread.is_set(processor).ok()? {
        return None;
    }
    sched_setaffinity(OWN, &one).ok()?;
    let bound = Bound { thread, since: now, of_thread, of_server };
    if sched_setaffinity(pid(thread), &one).is_err() {
        let _ = sched_setaffinity(OWN, &bound.of_server);
        return None;
    }
    Some(bound)
}

fn pid(thread: u32) -> Pid {
    Pid::from_raw(thread.cast_signed())
}

const OWN: Pid = Pid::from_raw(0);
/// A thread that faults again within this time is in a burst.
const GAP: Duration = Duration::from_millis(GAP_MS as u64);
pub(crate) const GAP_MS: u8 = 1;
/// After this time both are free for one fault, so that a thread is not kept on a processor that has become busy.
const BURST: Duration = Duration::from_millis(10);
