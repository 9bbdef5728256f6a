//! The calls, by wrenn and by the crate.
#![expect(unsafe_code, reason = "the crate's copy takes bare addresses")]

use std::{
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
};

use userfaultfd::{EventBuffer, FeatureFlags, RegisterMode, UffdBuilder};

use super::outcome::{Heard, Outcome};
use crate::{
    error::Result,
    page::PAGE_BYTES,
    sys::uffd::{self, Features, Install, Uffd, Watched},
};

/// What wrenn asks of a userfaultfd. Ranges are addresses.
pub(super) trait Calls {
    fn register(&self, range: &Range<u64>, watched: Watched) -> Outcome;
    fn unregister(&self, range: &Range<u64>) -> Outcome;
    fn copy(&self, to: u64, bytes: &[u8], install: Install) -> Outcome;
    /// A page of zeros.
    fn zero(&self, to: u64) -> Outcome;
    fn wake(&self, range: &Range<u64>) -> Outcome;
    fn protect(&self, range: &Range<u64>) -> Outcome;
    fn unprotect(&self, range: &Range<u64>) -> Outcome;
    /// Every event that waits, with addresses that count from `start`.
    fn hear(&self, start: u64) -> Vec<Heard>;
    fn fd(&self) -> BorrowedFd<'_>;
}

/// Wrenn's, and the crate's: each with a new descriptor that has had its first call. `None` if there can be none: that the
/// test is skipped is said then.
pub(super) fn both(test: &str, features: Features) -> Option<[Box<dyn Calls>; 2]> {
    let why: Box<dyn std::fmt::Debug> = match (wrenns(features), the_crates(features)) {
        (Ok(ours), Ok(theirs)) => return Some([ours, theirs]),
        (Err(error), _) => Box::new(error),
        (_, Err(error)) => Box::new(error),
    };
    println!("skipped: {test}: {why:?}");
    None
}

fn wrenns(features: Features) -> Result<Box<dyn Calls>> {
    let uffd = uffd::create()?;
    uffd::handshake(uffd.as_fd(), features)?;
    Ok(Box::new(uffd.non_blocking()?))
}

fn the_crates(features: Features) -> userfaultfd::Result<Box<dyn Calls>> {
    let mut builder = UffdBuilder::new();
    builder.close_on_exec(true).non_blocking(true).user_mode_only(false);
    builder.require_features(FeatureFlags::from_bits_retain(features.0));
    Ok(Box::new(builder.create()?))
}

impl Calls for Uffd {
    fn register(&self, range: &Range<u64>, watched: Watched) -> Outcome {
        uffd::register(self.as_fd(), range.start, len(range), watched).into()
    }

    fn unregister(&self, range: &Range<u64>) -> Outcome {
        uffd::unregister(self.as_fd(), range.start, len(range)).into()
    }

    fn copy(&self, to: u64, bytes: &[u8], install: Install) -> Outcome {
        self.copy(to, bytes, install).into()
    }

    fn zero(&self, to: u64) -> Outcome {
        self.copy(to, &[0; PAGE_BYTES], Install::Dirty).into()
    }

    fn wake(&self, range: &Range<u64>) -> Outcome {
        self.wake(range.start, len(range)).into()
    }

    fn protect(&self, range: &Range<u64>) -> Outcome {
        uffd::protect(self.as_fd(), range.start, len(range)).into()
    }

    fn unprotect(&self, range: &Range<u64>) -> Outcome {
        self.unprotect(range.start, len(range)).into()
    }

    fn hear(&self, start: u64) -> Vec<Heard> {
        let mut events = Vec::new();
        self.drain(&mut events).expect("the events can be read");
        events.into_iter().map(|event| Heard::of(event, start)).collect()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Calls for userfaultfd::Uffd {
    fn register(&self, range: &Range<u64>, watched: Watched) -> Outcome {
        let mode = match watched {
            Watched::Missing => RegisterMode::MISSING,
            Watched::Writes => RegisterMode::WRITE_PROTECT,
            Watched::MissingAndWrites => RegisterMode::MISSING | RegisterMode::WRITE_PROTECT,
        };
        self.register_with_mode(pointer(range.start), size(range), mode).map(|_| ()).into()
    }

    fn unregister(&self, range: &Range<u64>) -> Outcome {
        self.unregister(pointer(range.start), size(range)).into()
    }

    fn copy(&self, to: u64, bytes: &[u8], install: Install) -> Outcome {
        let is_clean = install == Install::Clean;
        // SAFETY: the kernel reads `bytes`, and writes memory that is registered with the descriptor.
        let copied = unsafe { self.copy(bytes.as_ptr().cast(), pointer(to), bytes.len(), !is_clean) };
        let outcome = Outcome::from(copied);
        if let (true, Outcome::Bytes(bytes)) = (is_clean, outcome) {
            // The crate's copy cannot protect. Nobody is awake yet who could write in between.
            let range = to..to + bytes;
            assert_eq!([Calls::protect(self, &range), Calls::wake(self, &range)], [Outcome::Done; 2]);
        }
        outcome
    }

    fn zero(&self, to: u64) -> Outcome {
        // SAFETY: the kernel writes memory that is registered with the descriptor.
        unsafe { self.zeropage(pointer(to), PAGE_BYTES, true) }.into()
    }

    fn wake(&self, range: &Range<u64>) -> Outcome {
        self.wake(pointer(range.start), size(range)).into()
    }

    fn protect(&self, range: &Range<u64>) -> Outcome {
        self.write_protect(pointer(range.start), size(range)).into()
    }

    fn unprotect(&self, range: &Range<u64>) -> Outcome {
        self.remove_write_protection(pointer(range.start), size(range), true).map(|()| size(range)).into()
    }

    fn hear(&self, start: u64) -> Vec<Heard> {
        let mut buffer = EventBuffer::new(64);
        let events = self.read_events(&mut buffer).expect("the events can be read");
        events.map(|event| Heard::of_crate(&event.expect("an event that the crate knows"), start)).collect()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn size(range: &Range<u64>) -> usize {
    usize::try_from(len(range)).expect("it fits")
}

fn pointer(addr: u64) -> *mut libc::c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(addr).expect("it fits"))
}
