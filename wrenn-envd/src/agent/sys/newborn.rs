use std::sync::atomic::{AtomicI32, Ordering};

use tokio::sync::Notify;

/// The number of a process that is being started. The kernel writes it before the process can end.
#[derive(Debug, Default)]
pub(in crate::agent) struct Newborn {
    pid: AtomicI32,
    given_up: Notify,
}

impl Newborn {
    /// `None` for one that is not there yet.
    pub(in crate::agent) fn pid(&self) -> Option<u32> {
        u32::try_from(self.pid.load(Ordering::Acquire)).ok().filter(|pid| *pid != 0)
    }

    /// Returns when it has taken too long to begin, and was killed. The thread that starts it may stand still all the same.
    ///
    /// # Cancel-Safety
    ///
    /// What happens meanwhile is told to whoever waits next.
    pub(in crate::agent) async fn is_given_up(&self) {
        self.given_up.notified().await;
    }

    pub(super) fn give_up(&self) {
        self.given_up.notify_one();
    }

    /// Where the kernel writes it.
    pub(super) fn place(&self) -> *mut i32 {
        self.pid.as_ptr()
    }
}
