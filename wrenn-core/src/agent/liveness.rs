//! Whether the agent still answers, for calls that wait.
//!
//! ```text
//!  a call waits ── nothing comes from the guest for PROBE_AFTER ──▶ probe ── an answer ──▶ waits on
//!                                                                    │
//!                                                                    └─ none in PROBE_MAX ──▶ silent
//! ```
//!
//! A guest whose network is down sends nothing: no connection breaks, and a reader would wait for ever. But a call may
//! also take hours for good reasons. To tell the two apart, wrenn sends a probe, which an agent answers at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::agent::activity::Activity;
use crate::patience::patient;

/// Whether one agent answers.
#[derive(Debug)]
pub(super) struct Liveness {
    /// When anything came from the guest.
    heard: Activity,
    /// Whether the host has stopped the guest or is about to, so that its silence means nothing.
    stopped: AtomicBool,
    /// When the last probe got no answer. The call that holds this lock probes for all calls that wait.
    failed: Mutex<Option<Instant>>,
}

impl Liveness {
    /// For an agent; `heard` notes everything that comes from it.
    pub(super) fn new(heard: Activity) -> Self {
        Self { heard, stopped: AtomicBool::new(false), failed: Mutex::default() }
    }

    /// Notes whether the host has stopped the guest, so that it cannot answer.
    pub(super) fn set_stopped(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::Relaxed);
    }

    /// Waits until the agent no longer answers. `probe` sends a probe, and returns whether there was an answer.
    pub(super) async fn until_silent<'a>(&self, probe: impl Fn() -> BoxFuture<'a, bool>) {
        let began = Instant::now();
        loop {
            sleep_until(self.heard_since(began) + patient(PROBE_AFTER)).await;
            let mut failed = self.failed.lock().await;
            if failed.is_some_and(|at| at >= began && at >= self.heard.last_used()) {
                return;
            }
            if self.heard_since(began).elapsed() < patient(PROBE_AFTER) {
                continue;
            }
            let answered = self.is_stopped() || timeout(patient(PROBE_MAX), probe()).await.unwrap_or(false);
            if !answered && !self.is_stopped() {
                *failed = Some(Instant::now());
                return;
            }
            drop(failed);
            sleep(patient(PROBE_AFTER)).await;
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    fn heard_since(&self, began: Instant) -> Instant {
        self.heard.last_used().max(began)
    }
}

/// How long nothing may come from the guest before a probe is sent.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// How long the agent may take to answer a probe: a guest under emulation and load is slow.
const PROBE_MAX: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn liveness() -> (Activity, Arc<Liveness>) {
        let heard = Activity::new();
        (heard.clone(), Arc::new(Liveness::new(heard)))
    }

    async fn silent_after_s<F: Future<Output = bool> + Send + 'static>(
        liveness: &Liveness,
        probe: impl Fn() -> F,
    ) -> u64 {
        let began = Instant::now();
        let probe = || -> BoxFuture<'static, bool> { Box::pin(probe()) };
        timeout(Duration::from_secs(10_000), liveness.until_silent(probe))
            .await
            .map_or(u64::MAX, |()| began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_says_nothing_is_silent_after_half_a_minute_and_one_that_answers_never_is() {
        assert_eq!(silent_after_s(&liveness().1, pending).await, 30);
        assert_eq!(silent_after_s(&liveness().1, || ready(false)).await, 10, "no connection comes about");
        assert_eq!(silent_after_s(&liveness().1, || ready(true)).await, u64::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_asks_a_guest_of_which_something_comes() {
        let (heard, liveness) = liveness();
        let chatter = tokio::spawn(async move {
            for _ in 0..100 {
                sleep(Duration::from_secs(9)).await;
                heard.touch();
            }
        });
        assert_eq!(silent_after_s(&liveness, || ready(false)).await, 100 * 9 + 10);
        chatter.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_for_all_who_wait() {
        let (_, liveness) = liveness();
        let asked = Arc::new(AtomicUsize::new(0));
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let (liveness, asked) = (Arc::clone(&liveness), Arc::clone(&asked));
                tokio::spawn(async move {
                    let probe = move || {
                        asked.fetch_add(1, Ordering::SeqCst);
                        pending()
                    };
                    silent_after_s(&liveness, probe).await
                })
            })
            .collect();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), 30);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_the_host_has_stopped_is_not_silent() {
        let (_, liveness) = liveness();
        liveness.set_stopped(true);
        let stopped = Arc::clone(&liveness);
        tokio::spawn(async move {
            sleep(Duration::from_secs(100)).await;
            stopped.set_stopped(false);
        });
        assert!((100..=130).contains(&silent_after_s(&liveness, || ready(false)).await));
    }
}
