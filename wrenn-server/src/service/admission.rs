//! Who may have how much of this machine: what each key may have, and what there is.
//!
//! ```text
//!  wanted ──▶ the key's limits ──▶ turn, in the order in which they came ──▶ Share ──drop──▶ the next one's turn
//!                 └─▶ LimitReached      └─ after QUEUED_MAX ─▶ Full
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::service::error::ServiceError;
use crate::service::machine::memory_mib;
use crate::service::meters::Meters;
use crate::store::records::{Terms, Usage};

/// What sandboxes may have of this machine together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Their memory, in MiB. A guest's memory is taken from the host when the guest touches it, so this may be more than
    /// the host has.
    pub memory_mib: u32,
    /// Their virtual processors, which may be more than the host has.
    pub vcpus: u32,
    /// How long one that is too much for now waits for its turn.
    pub queued_max: Duration,
}

impl Capacity {
    /// As many times the memory and the processors of this machine.
    #[must_use]
    pub fn of_this_machine(memory_times: f64, vcpus_times: f64, queued_max: Duration) -> Self {
        let processors =
            std::thread::available_parallelism().map_or(1, |number| u32::try_from(number.get()).unwrap_or(1));
        Self {
            memory_mib: times(
                memory_mib().and_then(|mib| u32::try_from(mib).ok()).unwrap_or(MEMORY_MIB_UNKNOWN),
                memory_times,
            ),
            vcpus: times(processors, vcpus_times),
            queued_max,
        }
    }
}

/// What was given to sandboxes, and what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// What sandboxes may have together.
    pub capacity: Capacity,
    /// The virtual processors of those that run.
    pub vcpus: u64,
    /// The memory of those that run, in MiB.
    pub memory_mib: u64,
}

/// Admits sandboxes.
#[derive(Debug)]
pub(super) struct Admission {
    capacity: Capacity,
    meters: Arc<Meters>,
    memory: Arc<Semaphore>,
    vcpus: Arc<Semaphore>,
    used: Arc<Mutex<HashMap<String, Usage>>>,
}

/// What one sandbox has of the machine, until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    _account: Account,
    _memory: OwnedSemaphorePermit,
    _vcpus: OwnedSemaphorePermit,
}

/// What one sandbox has of its key's limits, until this is dropped.
#[derive(Debug)]
struct Account {
    owner: String,
    vcpus: u32,
    memory_mib: u32,
    used: Arc<Mutex<HashMap<String, Usage>>>,
}

impl Admission {
    pub(super) fn new(capacity: Capacity, meters: Arc<Meters>) -> Self {
        let permits = |number: u32| Arc::new(Semaphore::new(usize::try_from(number).unwrap_or(Semaphore::MAX_PERMITS)));
        let (memory, vcpus) = (permits(capacity.memory_mib), permits(capacity.vcpus));
        Self { capacity, meters, memory, vcpus, used: Arc::default() }
    }

    pub(super) fn admitted(&self) -> Admitted {
        let free = |permits: &Semaphore| u64::try_from(permits.available_permits()).unwrap_or(u64::MAX);
        Admitted {
            capacity: self.capacity,
            vcpus: u64::from(self.capacity.vcpus).saturating_sub(free(&self.vcpus)),
            memory_mib: u64::from(self.capacity.memory_mib).saturating_sub(free(&self.memory)),
        }
    }

    /// What one sandbox of an owner's is to have, when it is its turn.
    ///
    /// # Errors
    /// [`ServiceError::LimitReached`] where its key may have no more; [`ServiceError::TooLarge`] for more than there is;
    /// [`ServiceError::Full`] where its turn does not come in time.
    ///
    /// # Cancel-Safety
    /// Cancelling gives the turn to the next one.
    pub(super) async fn admit(
        &self,
        owner: &str,
        terms: &Terms,
        vcpus: u32,
        memory_mib: u32,
    ) -> Result<Share, ServiceError> {
        self.check(vcpus, memory_mib)?;
        let queued_max = self.capacity.queued_max;
        let account = self.account(owner, terms, vcpus, memory_mib).inspect_err(|_| self.meters.refused("limit"))?;
        let _waiting = Waiting::of(&self.meters);
        let turn = async {
            let memory = Arc::clone(&self.memory).acquire_many_owned(memory_mib).await;
            let vcpus = Arc::clone(&self.vcpus).acquire_many_owned(vcpus).await;
            memory.and_then(|memory| vcpus.map(|vcpus| (memory, vcpus)))
        };
        match timeout(queued_max, turn).await {
            // Nobody closes them.
            Ok(Err(_)) | Err(_) => {
                self.meters.refused("full");
                Err(ServiceError::Full { waited: queued_max })
            }
            Ok(Ok((memory, vcpus))) => Ok(Share { _account: account, _memory: memory, _vcpus: vcpus }),
        }
    }

    /// Refuses more than there is, which no turn brings.
    ///
    /// # Errors
    /// [`ServiceError::TooLarge`].
    pub(super) fn check(&self, vcpus: u32, memory_mib: u32) -> Result<(), ServiceError> {
        let Capacity { memory_mib: memory_mib_max, vcpus: vcpus_max, .. } = self.capacity;
        if memory_mib > memory_mib_max || vcpus > vcpus_max {
            self.meters.refused("too_large");
            return Err(ServiceError::TooLarge { vcpus_max, memory_mib_max });
        }
        Ok(())
    }

    fn account(&self, owner: &str, terms: &Terms, vcpus: u32, memory_mib: u32) -> Result<Account, ServiceError> {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let used = all.entry(owner.to_owned()).or_default();
        let after = Usage {
            sandboxes: used.sandboxes + 1,
            vcpus: used.vcpus + u64::from(vcpus),
            memory_mib: used.memory_mib + u64::from(memory_mib),
        };
        let over = |what, after: u64, max: Option<u64>| match max {
            Some(max) if after > max => Err(ServiceError::LimitReached { what, max }),
            _ => Ok(()),
        };
        over("running sandboxes", after.sandboxes, terms.sandboxes_max.map(u64::from))?;
        over("virtual processors", after.vcpus, terms.vcpus_max.map(u64::from))?;
        over("MiB of memory", after.memory_mib, terms.memory_mib_max)?;
        *used = after;
        drop(all);
        Ok(Account { owner: owner.to_owned(), vcpus, memory_mib, used: Arc::clone(&self.used) })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut all = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = all.get_mut(&self.owner) {
            used.sandboxes -= 1;
            used.vcpus -= u64::from(self.vcpus);
            used.memory_mib -= u64::from(self.memory_mib);
            if used.sandboxes == 0 {
                all.remove(&self.owner);
            }
        }
    }
}

/// One that waits for its turn, until this is dropped.
struct Waiting<'a>(&'a Meters);

impl<'a> Waiting<'a> {
    fn of(meters: &'a Meters) -> Self {
        meters.waiting.inc();
        Self(meters)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.dec();
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates, which is what is wanted")]
fn times(number: u32, times: f64) -> u32 {
    (f64::from(number) * times).clamp(1.0, PERMITS_MAX) as u32
}

/// More than any machine has, and fewer than a semaphore takes.
const PERMITS_MAX: f64 = 4e9;
const MEMORY_MIB_UNKNOWN: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(memory_mib: u32, vcpus: u32) -> Admission {
        let capacity = Capacity { memory_mib, vcpus, queued_max: Duration::from_millis(50) };
        Admission::new(capacity, Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_there_is_is_given_out_once() {
        let all = admission(1024, 8);
        let none = Terms::default();
        let first = all.admit("ada", &none, 1, 512).await.expect("there is enough");
        let _second = all.admit("eve", &none, 1, 512).await.expect("there is enough");
        let full = all.admit("ada", &none, 1, 512).await.expect_err("there is none left");
        assert!(matches!(full, ServiceError::Full { .. }), "{full}");
        let large = all.admit("ada", &none, 1, 2048).await.expect_err("there never is");
        assert!(matches!(large, ServiceError::TooLarge { memory_mib_max: 1024, .. }), "{large}");
        let (waiting, ()) = tokio::join!(all.admit("ada", &none, 7, 512), async { drop(first) });
        waiting.expect("its turn has come");
        assert_eq!((all.meters.waiting.get(), all.admitted().vcpus, all.admitted().memory_mib), (0, 1, 512));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_has_no_more_than_it_may_and_all_of_it_again_later() {
        let all = admission(1 << 20, 1 << 10);
        let terms =
            Terms { sandboxes_max: Some(2), vcpus_max: Some(3), memory_mib_max: Some(1024), ..Terms::default() };
        let over = async |vcpus, memory_mib| {
            all.admit("ada", &terms, vcpus, memory_mib).await.expect_err("too much").to_string()
        };
        let first = all.admit("ada", &terms, 2, 512).await.expect("it may");
        assert!(over(2, 256).await.contains("virtual processors"));
        assert!(over(1, 600).await.contains("memory"));
        let second = all.admit("ada", &terms, 1, 512).await.expect("it may");
        assert!(over(0, 0).await.contains("running sandboxes"));
        all.admit("eve", &terms, 2, 512).await.expect("another may");
        drop((first, second));
        assert!(all.used.lock().expect("whole").is_empty());
        all.admit("ada", &terms, 3, 1024).await.expect("it may again");
    }
}
