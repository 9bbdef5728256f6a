//! Slots that are made before they are needed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::NetError;
use crate::gate::Gate;
use crate::slot::{Slot, Tap};

/// Slots that are made ahead, in the background: the making of one takes some milliseconds, and taking a ready one takes
/// none. A slot is used once, so nothing gets from one guest to the next.
///
/// Nothing is made before the first slot is taken. After that each one that is taken is replaced. A ready slot costs twelve
/// descriptors (seven where the kernel has no IPv6), and some 100 KiB of the kernel's memory. Clones are the same pool; with
/// the last one go the slots that are ready.
///
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// use wrenn_net::SlotPool;
///
/// let pool = SlotPool::new(4);
/// let (slot, tap, gate) = pool.take().await?;
/// # drop((slot, tap, gate));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SlotPool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    size: usize,
    patience: Duration,
    ready: Mutex<Ready>,
    /// The slots that are made at once: more would wait for each other in the kernel.
    making: Semaphore,
}

#[derive(Debug, Default)]
struct Ready {
    slots: VecDeque<(Slot, Tap, Gate)>,
    /// Whether somebody makes slots until there are enough.
    is_filling: bool,
}

impl Default for SlotPool {
    /// [`SIZE`](Self::SIZE) slots.
    fn default() -> Self {
        Self::new(Self::SIZE)
    }
}

impl SlotPool {
    /// How many slots are kept ready by default.
    pub const SIZE: usize = 4;

    /// Keeps `size` slots ready. With none, each is made when it is taken.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let (ready, making) = (Mutex::default(), Semaphore::new(MADE_AT_ONCE));
        Self(Arc::new(Inner { size, patience: PATIENCE, ready, making }))
    }

    /// Takes a slot that is ready, or makes one.
    ///
    /// # Errors
    /// As [`Slot::create`]; [`NetError::TooSlow`] where the kernel has made none within 30 s.
    ///
    /// # Cancel-Safety
    /// Cancelling loses a slot that was being made, and nothing else.
    ///
    /// # Panics
    /// If it is called outside of a tokio runtime.
    pub async fn take(&self) -> Result<(Slot, Tap, Gate), NetError> {
        let ready = self.0.lock().slots.pop_front();
        Inner::refill(&self.0);
        match ready {
            Some(slot) => Ok(slot),
            None => self.0.make().await,
        }
    }

    /// How many slots are ready now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.0.lock().slots.len()
    }
}

impl Inner {
    async fn make(&self) -> Result<(Slot, Tap, Gate), NetError> {
        let making = async {
            // It is never closed.
            let _permit = self.making.acquire().await;
            tokio::task::spawn_blocking(Slot::create).await
        };
        match timeout(self.patience, making).await {
            Ok(Ok(made)) => made,
            Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            Err(_elapsed) => Err(NetError::TooSlow { after: self.patience }),
        }
    }

    /// Has slots made until there are enough, unless that is being done.
    fn refill(this: &Arc<Self>) {
        let mut ready = this.lock();
        if ready.is_filling || ready.slots.len() >= this.size {
            return;
        }
        ready.is_filling = true;
        drop(ready);
        let pool = Arc::downgrade(this);
        tokio::task::spawn_blocking(move || while Self::is_filled_by_one_more(&pool) {});
    }

    /// Makes one slot more, and returns whether there is a next one to make.
    fn is_filled_by_one_more(pool: &Weak<Self>) -> bool {
        // Whoever waits for the pool's end does not wait for this.
        if pool.strong_count() == 0 {
            return false;
        }
        let made = Slot::create();
        let Some(pool) = pool.upgrade() else { return false };
        let mut ready = pool.lock();
        match made {
            Ok(slot) => ready.slots.push_back(slot),
            Err(error) => {
                // The next one that takes a slot is told why.
                tracing::warn!(%error, "a slot was not made ahead");
                ready.is_filling = false;
                return false;
            }
        }
        ready.is_filling = ready.slots.len() < pool.size;
        ready.is_filling
    }

    fn lock(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const MADE_AT_ONCE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(30);
