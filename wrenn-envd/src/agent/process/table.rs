use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    convert::Infallible,
    io, mem,
    pin::pin,
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use tokio::{
    io::unix::AsyncFd,
    sync::{
        OwnedSemaphorePermit, Semaphore,
        oneshot::{self, error::TryRecvError},
    },
    time::{Instant, sleep, timeout},
};

use super::{
    journal::{Budget, Journal},
    output::Outputs,
    running::Process,
};
use crate::{
    agent::{
        sys::{self, Newborn, Program, SignalNumber, StartError},
        threads::Threads,
    },
    proto::process::{ProcessSelector, process_selector::Selector},
};

/// Every process that was started here and runs, and the one place that children are reaped in.
///
/// PID 1 inherits every orphan of the guest. There is one call that waits for any child, [`Table::reap`], and it knows which
/// children somebody waits for, and which are being started; so no status is stolen, and no orphan stays.
#[derive(Debug)]
pub(crate) struct Table {
    state: Mutex<State>,
    budget: Arc<Budget>,
    starters: Arc<Threads>,
    /// One for each of the threads, so that what waits for none of them is given up, and its descriptors with it.
    starts: Arc<Semaphore>,
    /// How many starts have come to an end, one way or another, that nothing held up.
    answered: AtomicU64,
    /// One for each pipe that is read on.
    leftovers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    processes: BTreeMap<u32, Arc<Process>>,
    starting: Vec<Starting>,
    awaited: HashMap<u32, oneshot::Sender<ExitStatus>>,
    /// The last ones that have ended, the newest last, for clients who come back.
    ended: VecDeque<Ended>,
}

/// A process that is being started. Its status is here when it ended before its number was known.
#[derive(Debug)]
struct Starting {
    newborn: Arc<Newborn>,
    status: Option<ExitStatus>,
}

/// A process that has begun, and that nobody knows yet. It is killed when it is dropped, unless it was taken.
#[derive(Debug)]
pub(in crate::agent) struct Begun {
    pub(in crate::agent) pid: u32,
    exit: oneshot::Receiver<ExitStatus>,
    is_taken: bool,
    /// How long it took to start.
    pub(super) took: Duration,
}

impl Begun {
    /// Lets it live; the receiver gets its exit status.
    pub(in crate::agent) fn take(mut self) -> oneshot::Receiver<ExitStatus> {
        self.is_taken = true;
        mem::replace(&mut self.exit, oneshot::channel().1)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Once reaped the number may be another process's.
        if !self.is_taken && self.exit.try_recv() == Err(TryRecvError::Empty) {
            // It can only have ended in the meantime.
            let _ = sys::signal_group(self.pid, SignalNumber::KILL);
        }
    }
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
        Self {
            state: Mutex::default(),
            budget: Arc::new(Budget::new(kept_bytes_max)),
            starters: Threads::new("starter", STARTS_MAX),
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
            answered: AtomicU64::new(0),
            leftovers: Arc::new(Semaphore::new(LEFTOVERS_MAX)),
        }
    }

    pub(super) fn budget(&self) -> Arc<Budget> {
        self.budget.clone()
    }

    /// Starts `program` on a thread of its own kind: what it waits for, nobody else does.
    ///
    /// # Errors
    ///
    /// [`StartError::HeldUp`] also where so many processes that cannot begin are being started that none can be added. In a
    /// guest that is only busy it takes as long as it takes.
    ///
    /// # Cancel-Safety
    ///
    /// A process that begins all the same is killed.
    pub(in crate::agent) async fn spawn(self: &Arc<Self>, program: Program) -> Result<Begun, StartError> {
        let (permit, this, newborn) = (self.turn().await?, self.clone(), Arc::<Newborn>::default());
        let watched = newborn.clone();
        let starting = self.starters.run(move || {
            let begun = this.start(&program, &newborn);
            if !matches!(begun, Err(StartError::HeldUp)) {
                this.answered.fetch_add(1, Ordering::Relaxed);
            }
            drop(permit);
            begun
        });
        let mut starting = starting.map_err(StartError::Process)?;
        let begun = tokio::select! {
            biased;
            begun = &mut starting => begun,
            () = watched.is_given_up() => timeout(REAPED_MAX, starting).await.map_err(|_| StartError::HeldUp)?,
        };
        begun.map_err(|error| StartError::Process(io::Error::other(error)))?
    }

    /// Waits for one of the threads, in the order of the calls. It is given up where none of those that have a turn
    /// comes to an end: a guest that has much to do, or a host that does, makes no caller wait for nothing.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, StartError> {
        let mut turn = pin!(self.starts.clone().acquire_owned());
        loop {
            let answered = self.answered.load(Ordering::Relaxed);
            match timeout(TURN_MAX, &mut turn).await {
                Ok(permit) => return permit.map_err(|error| StartError::Process(io::Error::other(error))),
                Err(_) if self.answered.load(Ordering::Relaxed) == answered => return Err(StartError::HeldUp),
                Err(_) => {}
            }
        }
    }

    /// Starts `program`, and waits for it to begin. It may end, and be reaped, before this knows its number.
    fn start(&self, program: &Program, newborn: &Arc<Newborn>) -> Result<Begun, StartError> {
        self.lock().starting.push(Starting { newborn: newborn.clone(), status: None });
        let began = Instant::now();
        let started = program.start(newborn);
        let took = began.elapsed();
        let mut state = self.lock();
        let found = state.starting.iter().position(|starting| Arc::ptr_eq(&starting.newborn, newborn));
        let status = found.and_then(|index| state.starting.swap_remove(index).status);
        let pid = started?;
        let (sender, exit) = oneshot::channel();
        match status {
            // The receiver is here.
            Some(status) => drop(sender.send(status)),
            None => drop(state.awaited.insert(pid, sender)),
        }
        Ok(Begun { pid, exit, is_taken: false, took })
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

    /// Reads what others still write to the pipes of a process that has ended, and keeps nothing of it: they would be ended
    /// by a pipe that nobody reads. Where too many are read already, they are.
    pub(in crate::agent) fn read_on(&self, leftovers: Outputs) {
        let pipes = leftovers.open_pipes();
        let Ok(permit) = self.leftovers.clone().try_acquire_many_owned(pipes) else { return };
        if pipes > 0 {
            tokio::spawn(async move {
                leftovers.discard().await;
                drop(permit);
            });
        }
    }

    /// Those that run. One that has ended may still have output for a slow reader.
    pub(super) fn list(&self) -> Vec<Arc<Process>> {
        let state = self.lock();
        state.processes.values().filter(|process| !process.has_ended()).cloned().collect()
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
                process.note_end();
            }
            if let Some(waiter) = state.awaited.remove(&pid) {
                let _ = waiter.send(status);
            } else if let Some(starting) =
                state.starting.iter_mut().find(|starting| starting.newborn.pid() == Some(pid))
            {
                starting.status = Some(status);
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

/// How many processes are being started at once. One that waits for a file system that does not answer is one of them.
const STARTS_MAX: usize = 16;

/// How long a process waits for its turn while no other's comes to an end: more than it takes until those that are held up
/// are killed.
const TURN_MAX: Duration = Duration::from_secs(20);

/// How long a process that was killed before it began may take to be gone.
const REAPED_MAX: Duration = Duration::from_secs(2);

/// How many pipes are read whose process has ended: each takes a descriptor.
const LEFTOVERS_MAX: usize = 4096;

/// How long nobody is reaped after a failure.
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_waited_for_as_long_as_others_come_to_an_end() {
        let table = Arc::new(Table::new(1));
        let taken = table.starts.clone().acquire_many_owned(STARTS_MAX.try_into().unwrap()).await.unwrap();
        let (begun, busy) = (Instant::now(), 10 * TURN_MAX);
        let others = async {
            while begun.elapsed() < busy {
                table.answered.fetch_add(1, Ordering::Relaxed);
                sleep(TURN_MAX - Duration::from_secs(1)).await;
            }
        };
        let (refused, ()) = tokio::join!(table.turn(), others);
        assert!(matches!(refused, Err(StartError::HeldUp)), "they stand still now");
        assert!(begun.elapsed() > busy && begun.elapsed() < busy + 2 * TURN_MAX, "{:?}", begun.elapsed());
        let waiting = tokio::spawn(async move { table.turn().await.is_ok() });
        sleep(TURN_MAX / 2).await;
        drop(taken);
        assert!(waiting.await.unwrap());
    }

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
