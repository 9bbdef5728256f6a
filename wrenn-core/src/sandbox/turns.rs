//! Whose turn it is to start: so many sandboxes of a host start at once.
//!
//! A hundred that start together all are slow, and may run into the limits of their steps. So they start in turn, as many at
//! once as keep the processors busy, and the first is there soon. Whoever asks first has the next turn.
//!
//! A turn ends when the start has ended, and is over after [`TURN_MAX`] in any case: the start goes on without it. So nobody
//! waits for a guest that does not come up.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::patience::patient;

/// The turns of a host.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Semaphore,
    at_once: usize,
}

impl Turns {
    /// So many at once, and at least one.
    pub(crate) fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        Self { free: Semaphore::new(at_once), at_once }
    }

    pub(crate) fn at_once(&self) -> usize {
        self.at_once
    }

    /// Waits for a turn, and does `start` in it.
    ///
    /// # Cancel-Safety
    /// Cancelling gives the turn back, or the place in the queue up.
    pub(crate) async fn take<T>(&self, start: impl Future<Output = T>) -> T {
        // It is never closed.
        let turn = self.free.acquire().await;
        let mut start = pin!(start);
        match timeout(patient(TURN_MAX), &mut start).await {
            Ok(started) => started,
            Err(_elapsed) => {
                drop(turn);
                start.await
            }
        }
    }
}

impl Default for Turns {
    /// Four times the processors: half of a start is waiting for the kernel, for a disk, or for its VMM or guest to be given a
    /// processor. On two processors eight at once were the quickest of 1, 2, 4, 8 and 16.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(processors.saturating_mul(4))
    }
}

/// A start takes tens of milliseconds, and up to a second where the guest is emulated.
const TURN_MAX: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::{join, join_all, pending};
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_start_at_once_and_all_in_the_end() {
        let (turns, running, most) = (Turns::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
        let start = || async {
            most.fetch_max(running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            sleep(Duration::from_millis(100)).await;
            running.fetch_sub(1, Ordering::Relaxed)
        };
        let began = Instant::now();
        assert_eq!(join_all((0..10).map(|_| turns.take(start()))).await.len(), 10);
        assert_eq!(most.load(Ordering::Relaxed), 3);
        assert_eq!(began.elapsed().as_millis() / 100, 4, "ten in threes");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_that_does_not_come_up() {
        let turns = Turns::new(1);
        let began = Instant::now();
        let hanging = timeout(Duration::from_secs(60), turns.take(pending::<()>()));
        let next = async {
            turns.take(async {}).await;
            began.elapsed()
        };
        let (hung, next) = join(hanging, next).await;
        assert!(hung.is_err());
        assert!(next < Duration::from_secs(60) && next >= TURN_MAX, "{next:?}");
        // What was given up gave its turn back.
        turns.take(async {}).await;
    }

    #[test]
    fn there_is_always_a_turn() {
        assert_eq!(Turns::new(0).at_once(), 1);
        assert!(Turns::new(usize::MAX).at_once() >= 1);
        assert!(Turns::default().at_once() >= 4);
    }
}
