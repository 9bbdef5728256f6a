//! The pages that a guest writes, as its page server is told of them by synchronous protection.
//!
//! ```text
//!  the server:   a write waits ─────────► let_through: keep what is held, note, unprotect ─► the write goes on
//!                a page comes to be written ─► put_in_place: install, note ────────────────► the write goes on
//!  the tracker:  take, hold: forget, protect again
//! ```
//!
//! Each of these is one step, under a lock. So a page is protected unless it is noted, whatever comes between two calls, and
//! a page that is noted is there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use nix::errno::Errno;

use crate::{
    error::{Error, Result},
    hold::{held::Read, keeper::Keeper},
    page::PageRange,
    page_set::PageSet,
    sys::uffd::Copied,
};

/// What a server and a tracker of the same guest share.
#[derive(Default)]
pub(crate) struct WrittenPages(Mutex<State>);

#[derive(Default)]
struct State {
    /// Not protected, and not taken yet.
    noted: PageSet,
    /// Has to be asked before a page is written.
    keeper: Weak<Keeper<Read>>,
}

/// Whether the kernel has protected pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protected {
    Yes,
    /// Not before somebody reads what else it has to say.
    NotYet,
}

impl WrittenPages {
    /// Lets writes to pages through, which are there, by `unprotect`.
    pub(crate) fn let_through<T>(&self, pages: PageRange, unprotect: impl FnOnce() -> T) -> T {
        let mut state = self.lock();
        if let Some(keeper) = state.keeper.upgrade() {
            keeper.keep(pages);
        }
        state.noted.insert(pages);
        unprotect()
    }

    /// Puts a granule in place by `install`, to be written at once.
    pub(crate) fn put_in_place(&self, granule: PageRange, install: impl FnOnce() -> Result<Copied>) -> Result<Copied> {
        let mut state = self.lock();
        let copied = install()?;
        // Another page is there already, and whether it is protected has not changed.
        if matches!(copied, Copied::Bytes(_)) {
            state.noted.insert(granule);
        }
        Ok(copied)
    }

    /// Takes what is noted, and protects it again by `protect`, in pieces, between which the server goes on. What was
    /// taken is in `taken`, after an error too; the rest stays noted.
    pub(crate) fn take(
        &self,
        protect: impl Fn(PageRange) -> Result<Protected>,
        taken: &mut Vec<PageRange>,
    ) -> Result<()> {
        let noted = self.lock().noted.ranges();
        let mut patience = Patience::default();
        for piece in noted.into_iter().flat_map(pieces) {
            loop {
                let mut state = self.lock();
                if protect(piece)? == Protected::Yes {
                    state.noted.remove(piece);
                    break;
                }
                drop(state);
                patience.wait()?;
            }
            match taken.last_mut() {
                Some(last) if last.end() == u64::from(piece.start.0) => last.count += piece.count,
                _ => taken.push(piece),
            }
        }
        Ok(())
    }

    /// As [`take`](Self::take), but in one step, with which `keeper` begins to be asked.
    pub(crate) fn take_and_keep(
        &self,
        keeper: &Arc<Keeper<Read>>,
        protect: impl Fn(PageRange) -> Result<Protected>,
    ) -> Result<Vec<PageRange>> {
        let mut patience = Patience::default();
        loop {
            let mut state = self.lock();
            let noted = state.noted.ranges();
            let mut all = Protected::Yes;
            for pages in &noted {
                if protect(*pages)? == Protected::NotYet {
                    all = Protected::NotYet;
                }
            }
            if all == Protected::Yes {
                state.noted.clear();
                state.keeper = Arc::downgrade(keeper);
                return Ok(noted);
            }
            drop(state);
            patience.wait()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for WrittenPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WrittenPages").finish_non_exhaustive()
    }
}

/// How long the kernel may put a protection off.
struct Patience(Instant);

impl Default for Patience {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Patience {
    fn wait(&mut self) -> Result<()> {
        if self.0.elapsed() > PATIENCE {
            return Err(Error::kernel("UFFDIO_WRITEPROTECT", Errno::EAGAIN));
        }
        std::thread::sleep(RETRY);
        Ok(())
    }
}

fn pieces(range: PageRange) -> impl Iterator<Item = PageRange> {
    let end = range.start.0 + range.count;
    (range.start.0..end).step_by(PIECE_PAGES as usize).map(move |at| PageRange::new(at, PIECE_PAGES.min(end - at)))
}

/// 4 MiB, which are protected in some 150 us: so long a write may wait for the tracker. Whole granules, whatever they are.
const PIECE_PAGES: u32 = 1024;
/// A page server reads its events between two reads of its source, of which one from a disk that is busy takes this long.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::page::PageIndex;

    const PAGE: PageRange = PageRange { start: PageIndex(5), count: 1 };

    fn noted(written: &WrittenPages) -> Vec<PageRange> {
        written.lock().noted.ranges()
    }

    /// Runs `other` on a thread of its own from within a step, and says whether it came to its end within the step.
    fn within_a_step(step: impl FnOnce(&mut dyn FnMut()), other: impl FnOnce() + Send) -> bool {
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let mut came_to_its_end = false;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                begun.recv().expect("the step is taken");
                other();
                end.send(()).expect("the test waits");
            });
            step(&mut || {
                begin.send(()).expect("the thread waits");
                came_to_its_end = ended.recv_timeout(Duration::from_millis(50)).is_ok();
            });
            begin.send(()).ok();
        });
        came_to_its_end
    }

    fn take(written: &WrittenPages) -> Vec<PageRange> {
        let mut taken = Vec::new();
        written.take(|_| Ok(Protected::Yes), &mut taken).expect("protected");
        taken
    }

    #[test]
    fn nothing_is_taken_while_a_write_is_let_through_or_a_page_is_put_in_place() {
        let written = WrittenPages::default();
        let let_through = |during: &mut dyn FnMut()| written.let_through(PAGE, during);
        assert!(!within_a_step(let_through, || assert_eq!(take(&written), [PAGE])));
        let put_in_place = |during: &mut dyn FnMut()| {
            let install = || {
                during();
                Ok(Copied::Bytes(4096))
            };
            written.put_in_place(PAGE, install).expect("installed");
        };
        assert!(!within_a_step(put_in_place, || assert_eq!(take(&written), [PAGE])));
    }

    #[test]
    fn no_write_is_let_through_while_its_page_is_taken() {
        for at_once in [false, true] {
            let written = WrittenPages::default();
            written.let_through(PAGE, || ());
            let keeper = Arc::new(Keeper::new(Vec::new(), Box::new(|_| Ok(Vec::new())) as Read));
            let step = |during: &mut dyn FnMut()| {
                let during = std::cell::RefCell::new(during);
                let protect = |_| {
                    during.borrow_mut()();
                    Ok(Protected::Yes)
                };
                match at_once {
                    true => _ = written.take_and_keep(&keeper, protect).expect("protected"),
                    false => written.take(protect, &mut Vec::new()).expect("protected"),
                }
            };
            assert!(!within_a_step(step, || written.let_through(PAGE, || ())));
            assert_eq!(noted(&written), [PAGE], "it was let through after it was taken");
        }
    }

    #[test]
    fn what_cannot_be_protected_stays_noted() {
        let written = WrittenPages::default();
        written.let_through(PageRange::new(0, 3000), || ());
        let protect = |pages: PageRange| match pages.start.0 {
            0 => Ok(Protected::Yes),
            _ => Err(Error::kernel("UFFDIO_WRITEPROTECT", Errno::ENOENT)),
        };
        let mut taken = Vec::new();
        written.take(protect, &mut taken).expect_err("the second piece");
        assert_eq!((taken, noted(&written)), (vec![PageRange::new(0, 1024)], vec![PageRange::new(1024, 1976)]));
        assert_eq!(take(&written), [PageRange::new(1024, 1976)]);
        let exists = written.put_in_place(PAGE, || Ok(Copied::Exists)).expect("nothing is wrong");
        assert_eq!((exists, noted(&written)), (Copied::Exists, vec![]), "whoever put it there has noted it");
    }
}
