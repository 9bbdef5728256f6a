//! The memory of generations that several guests are made of, once for all of them.
//!
//! ```text
//! first guest  ─▶ alone: a page server reads what it touches
//! second guest ─▶ all of the generation's memory is read and checked, once ─▶ SharedMemory ─▶ mapped by it and all that follow
//!                 (much memory is read beside it, and it is served alone too)
//! last guest ends ─▶ it is freed
//! ```
//!
//! All of it, and not what somebody touched: holes would be filled by whoever touches them first, and a VMM that was broken
//! into could touch them where nobody serves them, so that other guests read zeros.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;
use wrenn_snapshot::{Generation, GenerationId, PAGE_BYTES, Space};

use crate::error::{Error, Result};
use crate::free_memory::free;
use crate::runtime::blocking;
use crate::vmm::memory::SharedMemory;

/// The generations that guests of this program are made of.
#[derive(Debug, Default)]
pub(crate) struct Residents(Mutex<HashMap<GenerationId, Weak<Resident>>>);

/// A generation that guests are made of.
#[derive(Debug, Default)]
struct Resident {
    memory: OnceCell<Arc<SharedMemory>>,
    /// Whether it is read, or was tried to be, beside the guests.
    is_read_beside: AtomicBool,
}

/// A guest's part in a generation, for as long as the guest lives.
#[derive(Debug)]
pub(crate) struct Share(Arc<Resident>);

/// Which guests share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All.
    Always,
    /// Those that are not the only one of their generation, where the host has memory to spare.
    WithOthers,
}

impl Residents {
    /// Takes part in a generation. The memory is `None` where the guest does not share.
    ///
    /// # Errors
    /// The memory cannot be read, with [`Sharing::Always`]. Otherwise that is a warning in the log.
    ///
    /// # Cancel-Safety
    /// Cancelling takes no part.
    pub(crate) async fn join(&self, from: &Generation, sharing: Sharing) -> Result<(Share, Option<Arc<SharedMemory>>)> {
        let share = self.share(from.id());
        // The map has a weak one.
        let is_alone = Arc::strong_count(&share.0) == 1;
        if sharing == Sharing::WithOthers && share.0.memory.get().is_none() {
            let len_bytes = from.space(Space::Memory).map_or(0, |space| space.data_pages * PAGE_BYTES as u64);
            if is_alone || !has_room_for(len_bytes).await? {
                return Ok((share, None));
            }
            if len_bytes > WAITED_FOR_BYTES_MAX {
                share.0.read_beside(from.clone());
                return Ok((share, None));
            }
        }
        match (share.0.memory.get_or_try_init(|| read(from.clone())).await.cloned(), sharing) {
            (Ok(memory), _) => Ok((share, Some(memory))),
            (Err(error), Sharing::Always) => Err(error),
            (Err(error), Sharing::WithOthers) => {
                warn(&error);
                Ok((share, None))
            }
        }
    }

    fn share(&self, id: GenerationId) -> Share {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.retain(|_, resident| resident.strong_count() > 0);
        if let Some(resident) = generations.get(&id).and_then(Weak::upgrade) {
            return Share(resident);
        }
        let resident = Arc::new(Resident::default());
        generations.insert(id, Arc::downgrade(&resident));
        Share(resident)
    }
}

impl Resident {
    /// Reads the memory for guests that come later.
    fn read_beside(self: &Arc<Self>, from: Generation) {
        if self.is_read_beside.swap(true, Ordering::Relaxed) {
            return;
        }
        let resident = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = resident.memory.get_or_try_init(|| read(from)).await {
                warn(&error);
            }
        });
    }
}

fn warn(error: &Error) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "the memory of a snapshot's sandboxes is not shared");
}

/// Reads all of a generation's memory; each page is checked.
async fn read(from: Generation) -> Result<Arc<SharedMemory>> {
    blocking(WHAT, move || {
        let reader = from.reader(Space::Memory)?;
        let filled = SharedMemory::filled(|file| reader.copy_into(file, Path::new("the memory of all clones")));
        Ok(Arc::new(filled.map_err(|e| Error::failed(WHAT)(e.into()))??))
    })
    .await?
}

/// Whether the host has the memory, and much more.
async fn has_room_for(len_bytes: u64) -> Result<bool> {
    let free = blocking("look at the free memory", || free(Path::new("/"))).await?;
    Ok(free.is_some_and(|free| len_bytes <= free.bytes / ROOM))
}

const WHAT: &str = "read the memory of all clones";
/// The rest is for what guests write, and for other templates.
const ROOM: u64 = 8;
/// Some 2 GB/s are copied by a processor, as `Populate` says: that is an eighth of a second.
const WAITED_FOR_BYTES_MAX: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use wrenn_snapshot::{LocalStore, PageRange};

    use super::*;

    fn generation(store: &LocalStore, byte: u8) -> Generation {
        generation_of(store, byte, 4)
    }

    fn generation_of(store: &LocalStore, byte: u8, pages: u32) -> Generation {
        let mut pending = store.begin(None).unwrap();
        let content = vec![byte; pages as usize * PAGE_BYTES];
        pending.write_dirty(Space::Memory, &content, &[PageRange::new(0, pages)]).unwrap();
        pending.write_dirty(Space::Drive, &[byte; PAGE_BYTES], &[PageRange::new(0, 1)]).unwrap();
        pending.publish(b"").unwrap()
    }

    #[tokio::test]
    async fn much_memory_is_shared_once_it_is_read_and_nobody_waits_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let pages = u32::try_from(WAITED_FOR_BYTES_MAX / PAGE_BYTES as u64).unwrap() + 1;
        let template = generation_of(&store, 7, pages);
        let residents = Residents::default();
        let join = async || residents.join(&template, Sharing::WithOthers).await.unwrap();
        let (_first, _) = join().await;
        let (_second, none) = join().await;
        assert!(none.is_none(), "it waits for what takes long");
        let deadline = Instant::now() + Duration::from_secs(120);
        while join().await.1.is_none() {
            assert!(Instant::now() < deadline, "it is never read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn the_second_guest_of_a_generation_shares_and_with_the_last_one_the_memory_goes() {
        let store = LocalStore::in_memory().unwrap();
        let (template, other) = (generation(&store, 7), generation(&store, 8));
        let residents = Residents::default();
        let join = async |from| residents.join(from, Sharing::WithOthers).await.unwrap();
        let (first, alone) = join(&template).await;
        assert!(alone.is_none());
        assert!(join(&other).await.1.is_none(), "it is another generation's");
        let ((second, memory), (third, same)) = (join(&template).await, join(&template).await);
        let (memory, same) = (memory.unwrap(), same.unwrap());
        assert!(Arc::ptr_eq(&memory, &same), "it is read once");
        let left = Arc::downgrade(&memory);
        drop((first, memory, same, second));
        assert!(left.upgrade().is_some(), "one is left");
        drop(third);
        assert!(left.upgrade().is_none());
        assert!(join(&template).await.1.is_none(), "it is the first again");
    }

    #[tokio::test]
    async fn who_always_shares_is_told_what_is_damaged_and_others_go_without() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let template = generation(&store, 7);
        let directory = dir.path().join(template.id().to_string());
        for file in std::fs::read_dir(&directory).unwrap().flatten() {
            let path = file.path();
            if file.metadata().unwrap().len() >= 4 * PAGE_BYTES as u64 {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&path, bytes).unwrap();
            }
        }
        let residents = Residents::default();
        let error = residents.join(&template, Sharing::Always).await.unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        let (_first, _) = residents.join(&template, Sharing::WithOthers).await.unwrap();
        let (_second, memory) = residents.join(&template, Sharing::WithOthers).await.unwrap();
        assert!(memory.is_none());
    }
}
