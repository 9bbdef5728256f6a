//! The guest's writable drive, which can be made to stand still.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use super::{freezer::FreezeError, sys, threads::Threads};

/// The drive, and a thread of its own to freeze and thaw it on: the threads for files may all wait for the thaw.
#[derive(Debug)]
pub(super) struct Drive {
    /// A directory of its file system; `None` where it is not the guest's own.
    directory: Option<Arc<OwnedFd>>,
    thread: Arc<Threads>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    may_be_frozen: bool,
}

/// A drive that nobody freezes while this is there.
#[derive(Debug)]
pub(super) struct Thawed<'a> {
    _state: MutexGuard<'a, State>,
}

impl Drive {
    /// Of the file system that `directory` is in.
    ///
    /// # Errors
    ///
    /// Where there is no thread for it, which is made now: when it is needed there may be none.
    pub(super) fn new(directory: Option<OwnedFd>) -> io::Result<Self> {
        let thread = Threads::new("drive", 1);
        if directory.is_some() {
            drop(thread.run(|| ())?);
        }
        let state = Mutex::new(State { may_be_frozen: false });
        Ok(Self { directory: directory.map(Arc::new), thread, state })
    }

    /// Flushes the drive, and makes whoever writes to it wait.
    ///
    /// # Errors
    ///
    /// The drive is not frozen, or thawed again when it comes to that.
    ///
    /// # Cancel-Safety
    ///
    /// The drive may be frozen all the same.
    pub(super) async fn freeze(&self) -> Result<(), FreezeError> {
        let directory = self.directory.clone().ok_or(FreezeError::NoDrive)?;
        let mut state = self.state.lock().await;
        state.may_be_frozen = true;
        let undo = directory.clone();
        let frozen = self.call(move || sys::freeze_file_system(directory)).await;
        if let Err(FreezeError::TimedOut(_)) = frozen {
            // It comes after the freeze, whenever that is done. Nobody waits for it.
            drop(self.thread.run(move || sys::thaw_file_system(undo))?);
        }
        frozen
    }

    /// Lets writers go on. A drive that is not frozen is left alone.
    pub(super) async fn thaw(&self) -> Result<(), FreezeError> {
        self.directory.as_ref().ok_or(FreezeError::NoDrive)?;
        self.thaw_if_any().await.map(drop)
    }

    /// The same, before anything is written to a drive that a snapshot may have caught frozen; and keeps it so.
    pub(super) async fn thaw_if_any(&self) -> Result<Thawed<'_>, FreezeError> {
        let mut state = self.state.lock().await;
        if let (Some(directory), true) = (self.directory.clone(), state.may_be_frozen) {
            self.call(move || sys::thaw_file_system(directory)).await?;
            state.may_be_frozen = false;
        }
        Ok(Thawed { _state: state })
    }

    async fn call(&self, call: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<(), FreezeError> {
        let called = timeout(CALL_MAX, self.thread.run(call)?).await.map_err(|_| FreezeError::TimedOut(CALL_MAX))?;
        called.map_err(io::Error::other)?.map_err(FreezeError::Io)
    }
}

/// Flushing takes as long as the drive takes. Who asks waits no longer than a host does.
const CALL_MAX: Duration = Duration::from_secs(25);
