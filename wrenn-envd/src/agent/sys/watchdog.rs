//! Ends a process that does not come to begin.
//!
//! The thread that starts a process stands still until that executes its program. Just before that the process is its
//! user's, who may stop it; or the program is in a file system that does not answer. So while a thread waits for such a
//! process, another one looks whether it waits for nothing.
//!
//! ```text
//!  starter    watch ---- clone, waits ------------------- goes on ---- Watched::was_ended
//!  timer        +---------- PERIOD ---> thread: is it stopped, or late? kill it
//! ```

use std::{
    io,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
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

use super::newborn::Newborn;

/// One thread and one timer, of the whole agent.
pub(super) struct Watchdog {
    timer: TimerFd,
    watched: Mutex<Vec<Arc<Watch>>>,
}

/// One process that has not begun.
struct Watch {
    newborn: Arc<Newborn>,
    since: Instant,
    ended: AtomicBool,
}

/// A process that is about to begin. It is watched no longer when this is dropped.
pub(super) struct Watched<'a> {
    watchdog: &'a Watchdog,
    watch: Arc<Watch>,
}

/// Begins to watch.
///
/// # Errors
///
/// The first time there is no descriptor, or no thread, for it.
pub(super) fn watch(newborn: &Arc<Newborn>) -> io::Result<Watched<'static>> {
    static WATCHDOG: OnceLock<Arc<Watchdog>> = OnceLock::new();
    let watchdog = match WATCHDOG.get() {
        Some(watchdog) => watchdog,
        None => {
            let made = Watchdog::start()?;
            WATCHDOG.get_or_init(|| made)
        }
    };
    let watch = Arc::new(Watch { newborn: newborn.clone(), since: Instant::now(), ended: AtomicBool::new(false) });
    let mut watched = watchdog.lock();
    if watched.is_empty() {
        watchdog.timer.set(Expiration::Interval(TimeSpec::from_duration(PERIOD)), TimerSetTimeFlags::empty())?;
    }
    watched.push(watch.clone());
    Ok(Watched { watchdog, watch })
}

impl Watched<'_> {
    /// Whether it was ended, and has to be reaped.
    pub(super) fn was_ended(self) -> bool {
        self.forget();
        self.watch.ended.load(Ordering::Acquire)
    }

    fn forget(&self) {
        let mut watched = self.watchdog.lock();
        watched.retain(|watch| !Arc::ptr_eq(watch, &self.watch));
        if watched.is_empty() {
            // A timer that goes on wakes a thread that finds nothing to watch.
            let _ = self.watchdog.timer.unset();
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Watchdog {
    fn start() -> io::Result<Arc<Self>> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
        let this = Arc::new(Self { timer, watched: Mutex::default() });
        let watching = Arc::clone(&this);
        thread::Builder::new().name("watchdog".to_owned()).spawn(move || watching.run())?;
        Ok(this)
    }

    fn run(&self) {
        let mut expirations = [0; 8];
        loop {
            match nix::unistd::read(self.timer.as_fd(), &mut expirations) {
                // Nobody is forgotten meanwhile, so that no number is another process's by the time it is killed.
                Ok(_) => self.lock().iter().for_each(|watch| watch.look()),
                // It is interrupted, which is no hurry.
                Err(_) => thread::sleep(PERIOD),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Watch>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    fn look(&self) {
        let Some(pid) = self.newborn.pid().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw) else { return };
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let is_late = self.since.elapsed() > LATE;
        if is_late || matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::Stopped(..))) {
            let was_killed = kill(pid, Signal::SIGKILL).is_ok();
            self.ended.fetch_or(was_killed, Ordering::AcqRel);
        }
    }
}

/// Nobody who is not attacked waits for it.
const PERIOD: Duration = Duration::from_millis(20);

/// Far more than a disk under load takes for a program's first page.
const LATE: Duration = Duration::from_secs(10);
