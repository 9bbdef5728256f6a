//! Ends a process that does not come to begin.
//!
//! The agent stands still until a new process executes its program. Just before that the process is its user's, who may
//! stop it: whoever stops all that he can, over and over, would stop the agent. Or the program is in a file system that
//! does not answer. So while the agent waits, a thread looks whether it waits for nothing.
//!
//! ```text
//!  agent    watch ---- clone, waits ------------------- goes on ---- Watched::was_ended
//!  timer      +---------- PERIOD ---> thread: is it stopped, or late? kill it
//! ```

use std::{
    io,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

/// One thread and one timer, of the whole agent.
pub(super) struct Watchdog {
    timer: TimerFd,
    state: Mutex<State>,
    /// Of the process that is waited for. The kernel writes it.
    pid: AtomicI32,
    /// One process begins at a time.
    turn: Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Since when it watches.
    since: Option<Instant>,
    ended: bool,
}

/// A process that is about to begin. Nothing is watched any more when it is dropped.
pub(super) struct Watched<'a> {
    watchdog: &'a Watchdog,
    _turn: MutexGuard<'a, ()>,
}

/// Begins to watch.
///
/// # Errors
///
/// The first time there is no descriptor, or no thread, for it.
pub(super) fn watch() -> io::Result<Watched<'static>> {
    static WATCHDOG: OnceLock<Arc<Watchdog>> = OnceLock::new();
    let watchdog = match WATCHDOG.get() {
        Some(watchdog) => watchdog,
        None => {
            let made = Watchdog::start()?;
            WATCHDOG.get_or_init(|| made)
        }
    };
    let turn = lock(&watchdog.turn);
    watchdog.pid.store(0, Ordering::Relaxed);
    *lock(&watchdog.state) = State { since: Some(Instant::now()), ended: false };
    watchdog.timer.set(Expiration::Interval(TimeSpec::from_duration(PERIOD)), TimerSetTimeFlags::empty())?;
    Ok(Watched { watchdog, _turn: turn })
}

impl Watched<'_> {
    /// Where the process's number has to be before the agent stands still.
    pub(super) fn pid(&self) -> *mut i32 {
        self.watchdog.pid.as_ptr()
    }

    /// Whether it was ended, and has to be reaped.
    pub(super) fn was_ended(self) -> bool {
        let mut state = lock(&self.watchdog.state);
        state.since = None;
        state.ended
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        lock(&self.watchdog.state).since = None;
        // A timer that goes on wakes a thread that finds nothing to watch.
        let _ = self.watchdog.timer.unset();
    }
}

impl Watchdog {
    fn start() -> io::Result<Arc<Self>> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let this = Arc::new(Self { timer, state: Mutex::default(), pid: AtomicI32::new(0), turn: Mutex::default() });
        let watching = Arc::clone(&this);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || watching.run())?;
        Ok(this)
    }

    fn run(&self) {
        let mut expirations = [0; 8];
        loop {
            match nix::unistd::read(self.timer.as_fd(), &mut expirations) {
                Ok(_) => self.look(),
                // It is interrupted, which is no hurry.
                Err(_) => thread::sleep(PERIOD),
            }
        }
    }

    fn look(&self) {
        let mut state = lock(&self.state);
        let pid = self.pid.load(Ordering::Relaxed);
        let Some(since) = state.since.filter(|_| pid != 0) else { return };
        let pid = Pid::from_raw(pid);
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if since.elapsed() > LATE || matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::Stopped(..))) {
            state.ended = kill(pid, Signal::SIGKILL).is_ok();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody who is not attacked waits for it.
const PERIOD: Duration = Duration::from_millis(20);

/// Far more than a disk under load takes for a program's first page.
const LATE: Duration = Duration::from_secs(10);
