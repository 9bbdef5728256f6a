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

use std::sync::Arc;

use tokio::sync::watch;

use super::{
    drive::Drive,
    events::Events,
    freezer::{FreezeError, Freezer, Thaw},
    hooks::{Hooks, Moment},
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
        self.freezer.thaw(Thaw::AsItself)?;
        self.events.add(GuestEventKind::Continued);
        Ok(())
    }

    /// Lets a guest that knows its time and its name go on, and closes connections that lead nowhere. Answers the number of
    /// the restore.
    pub(super) async fn restored(&self, kind: GuestEventKind) -> Result<u64, FreezeError> {
        self.hooks.run(Moment::BeforeThaw, kind.as_str()).await;
        self.freezer.thaw(Thaw::Restored)?;
        self.events.add(kind);
        self.restores.send_modify(|restore| *restore += 1);
        Ok(*self.restores.borrow())
    }
}
