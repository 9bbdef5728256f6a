//! A guest that stands still, is copied, and goes on, perhaps as another.
//!
//! ```text
//!  /freeze   -> hooks (before-freeze) -> Freezer::freeze
//!  /unfreeze -> hooks (before-thaw) -> Freezer::thaw -> event `continued`
//!  /init     -> clock, randomness, identity (setup) -> restored: drive, hooks (before-thaw), connections, thaw, event
//! ```
//!
//! A freeze writes nothing to the drive: what the page cache holds is in the snapshot with the rest of the memory. A copy of
//! the drive alone wants `/fsfreeze` first, which flushes it and keeps it as it is until `/fsthaw` or a restore.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

use super::{
    events::Events,
    freezer::{FreezeError, Freezer},
    hooks::{Hooks, Moment},
    sys,
};
use crate::guest_event::GuestEventKind;

/// Everything that happens around a snapshot.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) freezer: Arc<Freezer>,
    pub(super) hooks: Hooks,
    pub(super) drive: Drive,
    pub(super) events: Events,
    /// Counts restores; a connection from before the last one leads nowhere.
    pub(super) restores: watch::Sender<u64>,
}

/// The guest's writable drive.
#[derive(Debug)]
pub(super) struct Drive {
    /// A directory of its file system; `None` where it is not the guest's own.
    directory: Option<Arc<OwnedFd>>,
    may_be_frozen: AtomicBool,
}

impl Lifecycle {
    /// Stops the guest's processes. When that fails they run on.
    pub(super) async fn freeze(&self) -> Result<(), FreezeError> {
        self.hooks.run(Moment::BeforeFreeze, "frozen").await;
        let frozen = self.freezer.freeze().await;
        if frozen.is_err() {
            self.hooks.run(Moment::BeforeThaw, GuestEventKind::Continued.as_str()).await;
        }
        frozen
    }

    /// Lets them go on where no restore was in between.
    pub(super) async fn unfreeze(&self) -> Result<(), FreezeError> {
        if !self.freezer.is_frozen() {
            return Ok(());
        }
        self.hooks.run(Moment::BeforeThaw, GuestEventKind::Continued.as_str()).await;
        self.freezer.thaw()?;
        self.events.add(GuestEventKind::Continued);
        Ok(())
    }

    /// Lets a guest that knows its time and its name go on, and closes connections that lead nowhere. Answers the number of
    /// the restore.
    pub(super) async fn restored(&self, kind: GuestEventKind) -> Result<u64, FreezeError> {
        self.hooks.run(Moment::BeforeThaw, kind.as_str()).await;
        self.freezer.thaw()?;
        self.events.add(kind);
        self.restores.send_modify(|restore| *restore += 1);
        Ok(*self.restores.borrow())
    }
}

impl Drive {
    pub(super) fn new(directory: Option<OwnedFd>) -> Self {
        Self { directory: directory.map(Arc::new), may_be_frozen: AtomicBool::new(false) }
    }

    /// Flushes the drive, and makes whoever writes to it wait.
    pub(super) async fn freeze(&self) -> Result<(), FreezeError> {
        let directory = self.directory.clone().ok_or(FreezeError::NoDrive)?;
        self.may_be_frozen.store(true, Ordering::Release);
        blocking(move || sys::freeze_file_system(directory)).await
    }

    /// Lets writers go on. A drive that is not frozen is left alone.
    pub(super) async fn thaw(&self) -> Result<(), FreezeError> {
        let directory = self.directory.clone().ok_or(FreezeError::NoDrive)?;
        if self.may_be_frozen.swap(false, Ordering::AcqRel) {
            blocking(move || sys::thaw_file_system(directory)).await?;
        }
        Ok(())
    }

    /// The same, before anything is written to a drive that a snapshot may have caught frozen.
    pub(super) async fn thaw_if_any(&self) -> Result<(), FreezeError> {
        if self.directory.is_some() { self.thaw().await } else { Ok(()) }
    }
}

/// Flushing takes as long as the drive takes, and others must be answered meanwhile.
async fn blocking(call: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<(), FreezeError> {
    tokio::task::spawn_blocking(call).await.map_err(std::io::Error::other)?.map_err(FreezeError::Io)
}
