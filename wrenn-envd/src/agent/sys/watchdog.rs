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
//!
//! Late is not what a clock says. In a guest whose host gives it little time, or that has much to do itself, a process that
//! nothing holds up takes long to begin too. So what counts is how often this thread has come to look, and found the process
//! waiting for something else than a processor.

use std::{
    fs, io,
    os::fd::AsFd as _,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
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
    delay: Mutex<Delay>,
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
    let watch = Arc::new(Watch { newborn: newborn.clone(), delay: Mutex::default(), ended: AtomicBool::new(false) });
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
        let pid = self.newborn.pid().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let is_late = self.delay.lock().unwrap_or_else(PoisonError::into_inner).is_over(|| pid.is_some_and(waits));
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if let Some(pid) = pid
            && (is_late || matches!(waitid(Id::Pid(pid), flags), Ok(WaitStatus::Stopped(..))))
        {
            let was_killed = kill(pid, Signal::SIGKILL).is_ok();
            self.ended.fetch_or(was_killed, Ordering::AcqRel);
        }
        if is_late {
            // What is in a call that cannot be interrupted does not die of that.
            self.newborn.give_up();
        }
    }
}

/// How long a process has not begun, in looks.
#[derive(Debug, Default)]
struct Delay {
    looks: u32,
    /// How many of those that asked found the process waiting.
    waits: u32,
}

impl Delay {
    /// Counts one look, and says whether it is one too many. Some looks ask whether the process `waits`.
    fn is_over(&mut self, waits: impl FnOnce() -> bool) -> bool {
        self.looks = self.looks.saturating_add(1);
        if self.looks.is_multiple_of(LOOKS_PER_QUESTION) && waits() {
            self.waits = self.waits.saturating_add(1);
        }
        self.waits >= WAITS_MAX || self.looks >= LOOKS_MAX
    }
}

/// Whether a process is about nothing that a processor could further. One that has ended is not said to.
fn waits(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its name is in brackets, and may have any character.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'R' | 'Z' | 'X'))
}

/// Nobody who is not attacked waits for it.
const PERIOD: Duration = Duration::from_millis(20);

/// Each how many looks it is asked what the process is about, which takes a file of `/proc`: half a second at least.
const LOOKS_PER_QUESTION: u32 = 25;

/// How often a process may be found waiting, which takes ten seconds: far more than a disk under load takes for a program's
/// first page.
const WAITS_MAX: u32 = 20;

/// How often a process is looked at that has not begun, whatever it is about: two minutes, in which even a process that
/// hardly gets a processor has begun.
const LOOKS_MAX: u32 = 6000;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// After how many looks a process is late.
    fn looks_until_late(waits: impl Fn(u32) -> bool) -> u32 {
        let mut delay = Delay::default();
        (1..).find(|look| delay.is_over(|| waits(*look))).unwrap()
    }

    #[test]
    fn a_process_is_late_by_what_it_was_found_waiting_for_and_not_by_the_clock() {
        assert_eq!(looks_until_late(|_| true), WAITS_MAX * LOOKS_PER_QUESTION);
        assert_eq!(looks_until_late(|_| false), LOOKS_MAX);
        // A disk that answers slowly, and a processor that is there half of the time.
        assert_eq!(
            looks_until_late(|look| (look / LOOKS_PER_QUESTION).is_multiple_of(2)),
            2 * WAITS_MAX * LOOKS_PER_QUESTION
        );
        assert_eq!(PERIOD * LOOKS_PER_QUESTION * WAITS_MAX, Duration::from_secs(10));
    }

    #[test]
    fn only_what_sleeps_is_found_waiting() {
        let shell = |line: &str| Command::new("sh").args(["-c", line]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = |child: &std::process::Child| Pid::from_raw(child.id().try_into().unwrap());
        let (mut sleeper, mut spinner, mut ended) = (shell("read a"), shell("while :; do :; done"), shell("exit"));
        let is_it = |child: &_, expected: bool| {
            (0..250).any(|_| {
                thread::sleep(PERIOD);
                waits(pid(child)) == expected
            })
        };
        assert!(is_it(&sleeper, true));
        assert!(is_it(&spinner, false) && !waits(pid(&spinner)), "it has all of a processor, or waits for one");
        assert!(is_it(&ended, false), "nobody has reaped it");
        ended.wait().unwrap();
        for child in [&mut sleeper, &mut spinner] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(!waits(pid(&sleeper)), "it is gone");
    }
}
