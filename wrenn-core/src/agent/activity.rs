//! When a guest was last used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When a guest was last used from the host. Clones belong to the same guest.
///
/// A call counts as use from its start to its end: a command that is waited for, even if it writes nothing, a file that
/// is copied, a watch. Each piece that is sent to the guest counts too, and each piece of a connection to a port. Calls
/// that wrenn makes for itself do not count: the probe whether the agent answers, the set-up, freezing, and the wait
/// for the guest's events.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// Since `began`.
    last_used_ms: Arc<AtomicU64>,
    under_way: Arc<AtomicUsize>,
}

/// A call that is under way. The guest is in use until it is dropped.
#[derive(Debug)]
pub(crate) struct InUse(Activity);

impl Activity {
    /// Of a guest that was used just now.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), last_used_ms: Arc::default(), under_way: Arc::default() }
    }

    /// Notes that the guest is used now.
    pub(crate) fn touch(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_used_ms.fetch_max(since, Ordering::Relaxed);
    }

    /// Notes that the guest is used from now on, until the answer is dropped.
    pub(crate) fn begin(&self) -> InUse {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.touch();
        InUse(self.clone())
    }

    /// When the guest was last used, to the millisecond: now, while a call is under way.
    pub(crate) fn last_used(&self) -> Instant {
        if self.under_way.load(Ordering::Relaxed) > 0 {
            return Instant::now();
        }
        self.began + Duration::from_millis(self.last_used_ms.load(Ordering::Relaxed))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clones_note_the_same_use_and_time_alone_is_none() {
        let activity = Activity::new();
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(activity.last_used(), began, "nobody used it");
        activity.clone().touch();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(activity.last_used(), began + Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_under_way_is_use_until_its_end() {
        let activity = Activity::new();
        let call = activity.begin();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(activity.last_used(), Instant::now());
        drop(call);
        let ended = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(activity.last_used(), ended);
    }
}
