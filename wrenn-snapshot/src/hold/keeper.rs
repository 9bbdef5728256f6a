//! What pages held at an instant, each read once: by whoever copies them, or just before the guest writes to it.
//!
//! ```text
//!  wanted pieces ─┬─ take (the copier, in order) ──────────────┬─► the copier
//!                 └─ keep (before a write, out of order) ─► kept┘
//! ```
//!
//! A piece is read under the lock, which takes some 10 us. A guest that writes faster than its pages are copied waits
//! longer, until some of what is kept is taken, but only for a copier that is at work, and for [`PATIENCE`] at most. Before
//! a copier has begun, and after one has stood still for so long, what is kept grows with what the guest writes over, up to
//! all that is held. That is the loss that is accepted: memory of the host, and not the guest's time.

use std::{collections::VecDeque, time::Duration};

use super::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use crate::{error::Result, page::PageRange};

/// Consecutive pages, and what they held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) pages: PageRange,
    pub(crate) bytes: Vec<u8>,
}

/// The pieces that are wanted, and how they are read.
pub(crate) struct Keeper<R> {
    read: R,
    state: Mutex<State>,
    /// Something kept was taken, or is not wanted any more.
    room: Condvar,
}

struct State {
    /// Sorted, and apart.
    pieces: Vec<PageRange>,
    is_wanted: Vec<bool>,
    /// Those before are not wanted any more.
    next: usize,
    kept: VecDeque<Result<Piece>>,
    copier: Copier,
}

/// Who takes the pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copier {
    /// Nobody has taken one yet, or not for long.
    Away,
    AtWork,
}

impl<R: Fn(PageRange) -> Result<Vec<u8>>> Keeper<R> {
    /// Wants all of `pieces`, which are sorted and apart.
    pub(crate) fn new(pieces: Vec<PageRange>, read: R) -> Self {
        let is_wanted = vec![true; pieces.len()];
        let state = State { pieces, is_wanted, next: 0, kept: VecDeque::new(), copier: Copier::Away };
        Self { read, state: Mutex::new(state), room: Condvar::new() }
    }

    /// Keeps what is wanted of some pages. They are protected, and may be written when this returns.
    pub(crate) fn keep(&self, pages: PageRange) {
        let mut state = self.lock();
        let first = state.pieces.partition_point(|piece| piece.end() <= u64::from(pages.start.0));
        for number in first..state.pieces.len() {
            if u64::from(state.pieces[number].start.0) >= pages.end() {
                return;
            }
            while state.is_wanted[number] && state.kept.len() >= KEPT_MAX && state.copier == Copier::AtWork {
                let waited = self.room.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                state = waited.0;
                if waited.1.timed_out() {
                    state.copier = Copier::Away;
                }
            }
            if let Some(piece) = self.read(&mut state, number) {
                state.kept.push_back(piece);
            }
        }
    }

    /// The next piece. `None` once there have been all.
    pub(crate) fn take(&self) -> Option<Result<Piece>> {
        let mut state = self.lock();
        state.copier = Copier::AtWork;
        if let Some(piece) = state.kept.pop_front() {
            self.room.notify_all();
            return Some(piece);
        }
        while state.next < state.pieces.len() {
            let number = state.next;
            state.next += 1;
            if let Some(piece) = self.read(&mut state, number) {
                return Some(piece);
            }
        }
        None
    }

    /// Wants nothing any more.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        state.is_wanted.fill(false);
        state.kept.clear();
        self.room.notify_all();
    }

    fn read(&self, state: &mut State, number: usize) -> Option<Result<Piece>> {
        let pages = state.pieces[number];
        let is_wanted = std::mem::take(&mut state.is_wanted[number]);
        is_wanted.then(|| (self.read)(pages).map(|bytes| Piece { pages, bytes }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a write waits for a copier that stands still, such as one whose disk does.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1000 });

/// Of pieces, so 32 MiB of what the guest has written over and nobody has copied yet.
pub(crate) const KEPT_MAX: usize = if cfg!(test) { 2 } else { 512 };
