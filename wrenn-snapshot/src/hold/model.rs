//! Every order in which a copier and a guest that writes can meet, by exhaustion.

use std::sync::atomic::Ordering::Relaxed;

use loom::{sync::Arc, sync::atomic::AtomicU8, thread};

use crate::{error::Result, page::PageRange};

/// What the keeper locks with, in the model.
mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

#[path = "keeper.rs"]
#[expect(clippy::duplicate_mod, reason = "the same code with other locks")]
mod keeper;

use keeper::{KEPT_MAX, Keeper};

/// More than are kept at once, so that the guest has to wait for the copier.
const PIECES: usize = KEPT_MAX + 1;

type Memory = [AtomicU8; PIECES];

fn keeper_of(memory: &Arc<Memory>) -> Arc<Keeper<impl Fn(PageRange) -> Result<Vec<u8>> + use<>>> {
    let pieces = (0..PIECES).map(|page| PageRange::new(u32::try_from(page).unwrap(), 1)).collect();
    let memory = Arc::clone(memory);
    Arc::new(Keeper::new(pieces, move |pages: PageRange| Ok(vec![memory[pages.start.0 as usize].load(Relaxed)])))
}

/// Writes to every page, from the last to the first, as the guest does: after they are kept.
fn write_all(memory: &Memory, keeper: &Keeper<impl Fn(PageRange) -> Result<Vec<u8>>>) {
    for page in (0..PIECES).rev() {
        keeper.keep(PageRange::new(u32::try_from(page).unwrap(), 1));
        memory[page].store(9, Relaxed);
    }
}

#[test]
fn the_copier_gets_every_page_once_as_it_was() {
    loom::model(|| {
        let memory: Arc<Memory> = Arc::new(std::array::from_fn(|_| AtomicU8::new(1)));
        let keeper = keeper_of(&memory);
        let copier = thread::spawn({
            let keeper = Arc::clone(&keeper);
            move || {
                let mut pages: Vec<_> = std::iter::from_fn(|| keeper.take())
                    .map(|piece| piece.unwrap())
                    .map(|piece| (piece.pages.start.0, piece.bytes))
                    .collect();
                pages.sort_unstable();
                pages
            }
        });
        write_all(&memory, &keeper);
        let copied = copier.join().unwrap();
        let expected: Vec<_> = (0..u32::try_from(PIECES).unwrap()).map(|page| (page, vec![1])).collect();
        assert_eq!(copied, expected);
    });
}

#[test]
fn a_guest_is_not_held_up_by_a_copier_that_gives_up() {
    loom::model(|| {
        let memory: Arc<Memory> = Arc::new(std::array::from_fn(|_| AtomicU8::new(1)));
        let keeper = keeper_of(&memory);
        let copier = thread::spawn({
            let keeper = Arc::clone(&keeper);
            move || {
                let first = keeper.take();
                keeper.abandon();
                first
            }
        });
        write_all(&memory, &keeper);
        assert!(copier.join().unwrap().is_some());
        assert!(keeper.take().is_none(), "nothing is kept for nobody");
    });
}
