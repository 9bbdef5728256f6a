//! Generations that nothing depends on any more, and their collection.
//!
//! ```text
//!  kill, delete, compact ... ── tidy ──▶ wanted ──(a moment later, in the background)──▶ collect_garbage
//!                                 ▲                                                           │
//!                                 └──────────── wanted again meanwhile ◀──────────────────────┘
//! ```
//!
//! An operation that leaves garbage asks for a collection and does not wait for it. One collection serves all requests
//! of a short time, and each host runs one collection at a time.
//!
//! # Consistency
//! The lock `collect` is held over a collection, and over the writing of a record that keeps a generation. So no record
//! is written between the survey of the records and the deleting.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use wrenn_snapshot::GenerationId;

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::runtime::blocking;
use crate::site::lock::FileLock;
use crate::site::survey::{DamagedRecord, Survey};
use crate::site::{Site, record};

/// The task that collects. After it was dropped, the next request starts another one.
struct Turn {
    site: Arc<Site>,
    is_over: bool,
}

impl Site {
    /// Asks for a collection in the background, which serves all requests until it begins. Garbage that cannot be
    /// collected is left to the next collection.
    pub(crate) fn tidy(self: &Arc<Self>) {
        // Outside of a runtime there is no background. The garbage is left to the next collection.
        let Ok(runtime) = Handle::try_current() else { return };
        let mut progress = self.collector.progress();
        progress.is_wanted = true;
        if !std::mem::replace(&mut progress.has_task, true) {
            drop(progress);
            runtime.spawn(Turn { site: Arc::clone(self), is_over: false }.run());
        }
    }

    /// Deletes the generations that no template and no sandbox, running or paused, depends on. What a damaged
    /// generation may depend on is kept. Blocks.
    ///
    /// # Errors
    /// [`Error::Failed`] where a directory cannot be read or removed, or another program collects for too long.
    pub(crate) fn collect_garbage(&self) -> Result<()> {
        let _collecting = self.hold_collections()?;
        let survey = self.survey()?;
        let collected = self.store.collect_around_damage(&survey.roots(&self.store)?)?;
        self.collector.collections.fetch_add(1, Ordering::Relaxed);
        let damaged = survey.damaged_count() + collected.damaged.len();
        // The warning comes when the number changes, and not at every collection.
        if self.collector.damaged.swap(damaged, Ordering::Relaxed) != damaged {
            tracing::warn!(damaged, spared = collected.spared.len(), "`Host::damaged_records` names what is damaged");
        }
        if !collected.removed.is_empty() {
            tracing::debug!(count = collected.removed.len(), "collected generations");
        }
        Ok(())
    }

    /// How many collections this host has done.
    pub(crate) fn collections(&self) -> u64 {
        self.collector.collections.load(Ordering::Relaxed)
    }

    /// Writes a record that keeps a generation. The caller holds the generation until this returns: so a collection
    /// that began before sees that it is held, and a collection that begins later sees the record. Blocks.
    pub(crate) fn keep(&self, path: &Path, record: &impl serde::Serialize) -> Result<()> {
        let _no_collection = self.hold_collections()?;
        record::write(path, record)
    }

    /// Writes such a record only where there is no record of that name, and returns whether it was written. Blocks.
    pub(crate) fn keep_new(&self, path: &Path, record: &impl serde::Serialize) -> Result<bool> {
        let _no_collection = self.hold_collections()?;
        record::write_new(path, record)
    }

    /// The generations that records name, but for the record of one sandbox. Blocks.
    pub(crate) fn roots_of_others(&self, own: Option<&SandboxId>) -> Result<Vec<GenerationId>> {
        let own = own.map(|id| self.data.sandbox(id));
        Ok(self.survey()?.named_by_others(own.as_deref()))
    }

    /// The records that cannot be used. Reads what each names; blocks.
    pub(crate) fn damaged_records(&self) -> Result<Vec<DamagedRecord>> {
        Ok(self.survey()?.damaged(|id| self.store.load(id).map(drop).map_err(|error| error.to_string())))
    }

    pub(crate) fn survey(&self) -> Result<Survey> {
        Survey::of(&self.data, &mut self.collector.seen())
    }

    fn hold_collections(&self) -> Result<FileLock> {
        let lock = self.data.locks().lock_within(COLLECT_LOCK, COLLECT_PATIENCE)?;
        let text = format!("another program has collected garbage for {} s", COLLECT_PATIENCE.as_secs());
        lock.ok_or_else(|| Error::failed("use the snapshot store")(text.into()))
    }
}

impl Turn {
    async fn run(mut self) {
        while !self.is_over {
            // Garbage seldom comes alone, so one collection waits for more.
            tokio::time::sleep(COALESCED).await;
            self.site.collector.progress().is_wanted = false;
            let site = Arc::clone(&self.site);
            let collected = blocking("collect garbage", move || site.collect_garbage()).await;
            if let Err(error) = collected.and_then(|collected| collected) {
                tracing::warn!(error = &error as &dyn std::error::Error, "garbage is left for the next collection");
            }
            let mut progress = self.site.collector.progress();
            self.is_over = !progress.is_wanted;
            progress.has_task = progress.is_wanted;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The task is dropped unfinished when its runtime ends. The same host may be used from another runtime.
        if !self.is_over {
            self.site.collector.progress().has_task = false;
        }
    }
}

const COLLECT_LOCK: &str = "collect";
/// Deleting a hundred GiB takes some seconds. A holder that takes longer was stopped, or its disk stands still.
const COLLECT_PATIENCE: Duration = Duration::from_secs(120);
const COALESCED: Duration = Duration::from_millis(20);
