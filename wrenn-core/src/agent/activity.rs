//! When a guest was last used.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When a guest was last used from the host. Clones note the same guest's use.
///
/// A call counts as use when it begins, and each piece of a stream counts when it is sent or received, so that a command
/// whose output is read, a file that is copied and a connection to a port keep counting. What the host does for itself does
/// not count: the question whether the agent is there, set-up, freezing, and the wait for the guest's events.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    began: Instant,
    /// Since `began`.
    last_used_ms: Arc<AtomicU64>,
}

impl Activity {
    /// Of a guest that was used just now.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), last_used_ms: Arc::default() }
    }

    /// Notes that the guest is used now.
    pub(crate) fn touch(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_used_ms.fetch_max(since, Ordering::Relaxed);
    }

    /// When the guest was last used, to the millisecond.
    pub(crate) fn last_used(&self) -> Instant {
        self.began + Duration::from_millis(self.last_used_ms.load(Ordering::Relaxed))
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
}
