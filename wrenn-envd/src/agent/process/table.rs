use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    io,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::{
    io::unix::AsyncFd,
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{
    journal::{Budget, Journal},
    running::Process,
};
use crate::{
    agent::sys::{self, Program},
    proto::process::{ProcessSelector, process_selector::Selector},
};

/// Every process that was started here and runs, and the one place that children are reaped in.
///
/// PID 1 inherits every orphan of the guest. There is one call that waits, [`Table::reap`], and it knows which children
/// somebody waits for; so no status is stolen, and no orphan stays.
#[derive(Debug)]
pub(crate) struct Table {
    state: Mutex<State>,
    budget: Arc<Budget>,
}

#[derive(Debug, Default)]
struct State {
    processes: BTreeMap<u32, Arc<Process>>,
    awaited: HashMap<u32, oneshot::Sender<ExitStatus>>,
    /// The last ones that have ended, the newest last, for clients who come back.
    ended: VecDeque<Ended>,
}

/// What is kept of a process that has ended: nothing that holds a descriptor.
#[derive(Debug)]
struct Ended {
    since: Instant,
    pid: u32,
    tag: Option<String>,
    journal: Arc<Journal>,
}

impl Ended {
    fn is_meant(&self, selector: &Selector) -> bool {
        self.since.elapsed() <= ENDED_FOR
            && match selector {
                Selector::Pid(pid) => self.pid == *pid,
                Selector::Tag(tag) => self.tag.as_deref() == Some(tag.as_str()),
            }
    }
}

impl Table {
    /// An empty one, whose processes' output may take `kept_bytes_max` of memory.
    pub(crate) fn new(kept_bytes_max: usize) -> Self {
        Self { state: Mutex::default(), budget: Arc::new(Budget::new(kept_bytes_max)) }
    }

    pub(super) fn budget(&self) -> Arc<Budget> {
        self.budget.clone()
    }

    /// Starts `program`; the receiver gets its exit status.
    ///
    /// The lock is held meanwhile, so that a child cannot be reaped before it is awaited. The start also waits for a child
    /// of its own when exec fails, which the lock keeps [`Table::reap`] away from.
    pub(in crate::agent) fn spawn(&self, program: &Program) -> io::Result<(u32, oneshot::Receiver<ExitStatus>)> {
        let mut state = self.lock();
        let pid = program.start()?;
        let (sender, receiver) = oneshot::channel();
        state.awaited.insert(pid, sender);
        Ok((pid, receiver))
    }

    pub(super) fn insert(&self, process: Arc<Process>) {
        self.lock().processes.insert(process.pid, process);
    }

    /// Moves a process to those that have ended.
    pub(super) fn retire(&self, process: &Arc<Process>) {
        let mut state = self.lock();
        // The number may be another process's by now.
        if state.processes.get(&process.pid).is_some_and(|found| Arc::ptr_eq(found, process)) {
            state.processes.remove(&process.pid);
        }
        let (pid, tag, journal) = (process.pid, process.tag.clone(), process.journal.clone());
        state.ended.push_back(Ended { since: Instant::now(), pid, tag, journal });
        while state.ended.front().is_some_and(|oldest| {
            state.ended.len() > ENDED_MAX || oldest.since.elapsed() > ENDED_FOR || self.budget.is_spent()
        }) {
            state.ended.pop_front();
        }
    }

    /// Those that run. One that has ended may still have output for a slow reader.
    pub(super) fn list(&self) -> Vec<Arc<Process>> {
        let state = self.lock();
        state.processes.values().filter(|process| !process.ended.load(Ordering::Acquire)).cloned().collect()
    }

    /// The process that `selector` names, by number or by tag.
    pub(super) fn find(&self, selector: &ProcessSelector) -> Option<Arc<Process>> {
        let state = self.lock();
        match selector.selector.as_ref()? {
            Selector::Pid(pid) => state.processes.get(pid).cloned(),
            Selector::Tag(tag) => {
                state.processes.values().find(|process| process.tag.as_deref() == Some(tag.as_str())).cloned()
            }
        }
    }

    /// The number and the output of the last one that `selector` named, of those that have ended in the last
    /// [`ENDED_FOR`].
    pub(super) fn find_ended(&self, selector: &ProcessSelector) -> Option<(u32, Arc<Journal>)> {
        let selector = selector.selector.as_ref()?;
        let state = self.lock();
        let found = state.ended.iter().rev().find(|ended| ended.is_meant(selector))?;
        Some((found.pid, found.journal.clone()))
    }

    /// Reaps for as long as the agent lives, and calls `reaped` when somebody may have ended. What fails is told to
    /// `complain` and begun anew: an agent that no longer reaps would fill the guest with zombies.
    pub(crate) async fn reap_for_ever(&self, reaped: impl Fn(), complain: impl Fn(&io::Error)) -> Infallible {
        begin_anew_for_ever(|| self.reap_until_it_fails(&reaped), complain).await
    }

    async fn reap_until_it_fails(&self, reaped: impl Fn()) -> io::Result<Infallible> {
        // Whoever has ended so far is reaped even where nothing will tell of those to come.
        self.reap()?;
        reaped();
        let child_signals = child_signals()?;
        loop {
            // Several that end at once are one signal; so each is taken before it is looked who has ended.
            let mut ready = child_signals.readable().await?;
            while let Ok(read) =
                ready.try_io(|signals| Ok(signals.get_ref().read_signal()?.ok_or(io::ErrorKind::WouldBlock)?))
            {
                read?;
            }
            self.reap()?;
            reaped();
        }
    }

    /// Takes the status of every child that has ended: to whoever awaits it, or to nobody.
    fn reap(&self) -> io::Result<()> {
        loop {
            let mut state = self.lock();
            let Some((pid, status)) = sys::wait_any()? else { return Ok(()) };
            if let Some(process) = state.processes.get(&pid) {
                process.ended.store(true, Ordering::Release);
            }
            if let Some(waiter) = state.awaited.remove(&pid) {
                let _ = waiter.send(status);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begins `work` again whenever it fails, after a pause: what fails at once is not to take a whole processor.
async fn begin_anew_for_ever<F: Future<Output = io::Result<Infallible>>>(
    work: impl Fn() -> F,
    complain: impl Fn(&io::Error),
) -> Infallible {
    loop {
        let Err(error) = work().await;
        complain(&error);
        sleep(PAUSE).await;
    }
}

/// What tells of children that have ended. A handler would have to interrupt the agent first, and then to wake it up.
fn child_signals() -> io::Result<AsyncFd<SignalFd>> {
    let signals = SignalFd::with_flags(&block_child_signals()?, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    sys::watch_signals(signals)
}

/// Leaves them to the descriptor: a thread that does not block them would be given some, and drop them. Threads that are
/// made from here on block them too, and processes begin with no signal blocked.
pub(crate) fn block_child_signals() -> io::Result<SigSet> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    Ok(mask)
}

/// How many processes that have ended are kept, and for how long. Their output counts as that of others does.
const ENDED_MAX: usize = 64;
const ENDED_FOR: Duration = Duration::from_secs(600);

/// How long nobody is reaped after a failure.
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_and_followed_by_another_attempt() {
        let (begun, attempts, told) = (Instant::now(), RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let work = || async {
            attempts.borrow_mut().push(begun.elapsed());
            let attempt = attempts.borrow().len();
            match attempt {
                1 => Err(io::Error::other("first")),
                2 => Err(io::Error::other("second")),
                _ => std::future::pending().await,
            }
        };
        let complain = |error: &io::Error| told.borrow_mut().push(error.to_string());
        let ended = tokio::time::timeout(Duration::from_secs(60), begin_anew_for_ever(work, complain)).await;
        assert!(ended.is_err(), "it never ends");
        assert_eq!(*told.borrow(), ["first", "second"]);
        assert_eq!(*attempts.borrow(), [Duration::ZERO, PAUSE, 2 * PAUSE]);
    }
}
