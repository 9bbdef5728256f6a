//! A sandbox on disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wrenn_snapshot::CompactPolicy;

use crate::error::{Error, Result, Subject};
use crate::guest::then::SaveReport;
use crate::id::SandboxId;
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::request::Request;
use crate::sandbox::start::{Origin, start};
use crate::sandbox::template;
use crate::site::lock::FileLock;
use crate::site::record;
use crate::site::records::PausedRecord;
use crate::site::step::Step;
use crate::state::{SandboxInfo, SandboxState};

impl Sandbox {
    /// Stops the guest and keeps its memory, drive and devices on disk; everything else is freed. What is stored is
    /// what was written since the last pause.
    ///
    /// Streams of commands end with [`Error::InvalidState`]; their processes go on when the sandbox is resumed, and
    /// [`Child::reattach`](crate::Child::reattach) goes on with the stream.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and others leave the sandbox running. [`Error::InvalidState`] where it does not run.
    ///
    /// # Cancel-Safety
    /// A pause that has begun goes on; [`Host::paused`](crate::Host::paused) finds its result.
    pub async fn pause(&self) -> Result<PausedSandbox> {
        let (record, report) = self.request("be paused", Request::Pause).await?;
        Ok(PausedSandbox::after(Arc::clone(self.registry()), record, report))
    }
}

/// A paused sandbox: resumable by any program that opens the data directory, for as long as it is there.
#[derive(Debug, Clone)]
pub struct PausedSandbox {
    registry: Arc<Registry>,
    record: PausedRecord,
    report: Option<Box<SaveReport>>,
}

impl PausedSandbox {
    /// One that was found on disk.
    pub(crate) fn new(registry: Arc<Registry>, record: PausedRecord) -> Self {
        Self { registry, record, report: None }
    }

    /// One that was just paused.
    fn after(registry: Arc<Registry>, record: PausedRecord, report: Option<SaveReport>) -> Self {
        Self { registry, record, report: report.map(Box::new) }
    }

    /// The sandbox's identity, which it keeps.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.record.fixed.id
    }

    /// All that is known of it.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.record.info(SandboxState::Paused)
    }

    #[cfg(test)]
    pub(crate) fn generation(&self) -> wrenn_snapshot::GenerationId {
        self.record.generation
    }

    /// What this pause stored of memory, drive and devices, in bytes; earlier pauses keep the rest.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.record.stored_bytes
    }

    /// What this pause took; `None` where it was found on disk.
    #[must_use]
    pub fn save_report(&self) -> Option<SaveReport> {
        self.report.as_deref().copied()
    }

    /// Runs the sandbox again, lazily: its memory comes in as it is touched. Its processes go on where they were, with
    /// the clock set, fresh randomness, and a fresh token.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where somebody else resumed it first, [`Error::NotFound`] where it was removed,
    /// [`Error::Corrupt`] for damaged data, [`Error::Host`] where this machine cannot run it. The pause is kept.
    ///
    /// # Cancel-Safety
    /// Cancelling undoes the resume; the pause is kept.
    pub async fn resume(&self) -> Result<Sandbox> {
        let asked = std::time::Instant::now();
        let lock = self.lock_patiently("be resumed").await?;
        let this = self.clone();
        let record = blocking("read the pause", move || this.current_record()).await??;
        self.registry.site.observer.at(Step::Load)?;
        let generation = template::load(&self.registry.site, record.generation).await?;
        let shared = start(&self.registry, generation, record.fixed, Origin::Resumed, Some(lock), asked).await?;
        Ok(Sandbox::new(shared, Arc::clone(&self.registry)))
    }

    /// Folds those of the earlier pauses together that are mostly overwritten, and frees what was folded. Says how many
    /// bytes of pages the sandbox needs no more; what another needs stays.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it has been resumed, [`Error::NoSpace`] and others leave it as it was.
    ///
    /// # Cancel-Safety
    /// A compaction that has begun goes on.
    pub async fn compact(&self) -> Result<u64> {
        let lock = self.lock_patiently("be compacted").await?;
        let this = self.clone();
        blocking("compact", move || this.compact_here(lock)).await?
    }

    fn compact_here(&self, lock: FileLock) -> Result<u64> {
        let record = self.current_record()?;
        let store = &self.registry.site.store;
        let compaction = store.compact(&store.load(record.generation)?, CompactPolicy::default())?;
        if compaction.generation.id() != record.generation {
            let record = PausedRecord { generation: compaction.generation.id(), ..record };
            self.registry.site.keep(&self.registry.site.data.sandbox(self.id()), &record)?;
        }
        drop((lock, compaction.generation));
        self.registry.site.tidy();
        Ok(compaction.released_bytes)
    }

    /// Since this handle was made the sandbox may have been resumed and paused again, or removed.
    fn current_record(&self) -> Result<PausedRecord> {
        let record = record::read::<PausedRecord>(&self.registry.site.data.sandbox(self.id()))?;
        record.ok_or_else(|| {
            self.registry.site.data.forget_lock(self.id().as_str());
            Error::not_found(Subject::Sandbox(self.id().clone()), format!("sandbox {} was removed", self.id()))
        })
    }

    /// Removes the sandbox. What no other depends on is deleted in the background, soon afterwards:
    /// [`Host::collect_garbage`](crate::Host::collect_garbage) waits for that.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// for info in host.sandboxes(&wrenn_core::SandboxFilter::new().label("job", "nightly")).await? {
    ///     host.paused(&info.id).await?.delete().await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it has been resumed; then [`Sandbox::kill`] ends it. [`Error::Failed`] where its
    /// record cannot be removed. Deleting what is gone is not an error.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the sandbox as it was, or removed.
    pub async fn delete(self) -> Result<()> {
        let lock = self.lock_patiently("be deleted").await?;
        blocking("delete the sandbox", move || {
            let site = &self.registry.site;
            record::remove(&site.data.sandbox(self.id()))?;
            site.data.forget_lock(self.id().as_str());
            drop(lock);
            site.tidy();
            Ok(())
        })
        .await?
    }

    /// Waits a moment for a sandbox that is just letting go: its last handle was dropped, or another handle compacts it.
    async fn lock_patiently(&self, operation: &'static str) -> Result<FileLock> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let this = self.clone();
            match blocking("lock the sandbox", move || this.lock(operation)).await? {
                Err(Error::InvalidState { .. }) if Instant::now() < deadline => tokio::time::sleep(LOCK_POLL).await,
                result => return result,
            }
        }
    }

    fn lock(&self, operation: &'static str) -> Result<FileLock> {
        let lock = self.registry.site.data.try_lock(self.id().as_str())?;
        let state = SandboxState::Running;
        lock.ok_or_else(|| Error::InvalidState { id: self.id().clone(), operation, state, exit: None })
    }
}

/// A VM takes some 15 ms to end.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);
const LOCK_POLL: Duration = Duration::from_millis(5);
