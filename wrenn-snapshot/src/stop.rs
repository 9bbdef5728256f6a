//! Telling a page server from outside what to leave off.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result};

/// Ends a page server, or what it does in the background, from anywhere and at any time: also before it serves, and
/// while its VMM has not connected yet. Clones stop the same server.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<Stop>);

#[derive(Debug)]
struct Stop {
    event: EventFd,
    stopped: AtomicBool,
    background_stopped: AtomicBool,
}

impl StopHandle {
    /// A handle that nobody has used yet.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn new() -> Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::kernel("eventfd", errno))?;
        let flag = || AtomicBool::new(false);
        Ok(Self(Arc::new(Stop { event, stopped: flag(), background_stopped: flag() })))
    }

    /// Ends the server within milliseconds. It stays ended.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        // The only failure is a full counter, and that is readable too.
        let _ = self.0.event.write(1);
    }

    /// Ends prefetching and populating after the chunk that is under way. Faults are served as before.
    pub fn stop_background(&self) {
        self.0.background_stopped.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn is_background_stopped(&self) -> bool {
        self.0.background_stopped.load(Ordering::Acquire)
    }
}

/// Readable once the server was told to stop.
impl AsFd for StopHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
