//! A sandbox on disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wrenn_snapshot::CompactPolicy;

use crate::error::{Error, Result, Subject};
use crate::guest::restore::Asking;
use crate::guest::then::SaveReport;
use crate::id::SandboxId;
use crate::network::publish::SleepingPort;
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::registry::Registry;
use crate::sandbox::request::Request;
use crate::sandbox::shared::Shared;
use crate::sandbox::start::{Origin, start};
use crate::sandbox::template;
use crate::site::lock::FileLock;
use crate::site::record;
use crate::site::records::PausedRecord;
use crate::site::step::Step;
use crate::state::{PublishedPort, SandboxInfo, SandboxState};

impl Sandbox {
    /// Stops the guest, keeps its memory, drive and devices on disk, and frees everything else. A pause stores only
    /// what was written since the last one.
    ///
    /// Published ports are closed, but for those that [wake](crate::PublishOptions::wake) the sandbox.
    ///
    /// Streams of commands end with [`Error::InvalidState`]. Their processes go on when the sandbox is resumed, and
    /// [`Child::reattach`](crate::Child::reattach) goes on with the stream.
    ///
    /// # Errors
    /// [`Error::InvalidState`] or [`Error::VmEnded`] where the sandbox does not run, or ends in the meantime. After
    /// every other error, [`Error::NoSpace`] for instance, the sandbox goes on running; where it cannot, it ends with
    /// [`Exit::Broken`](crate::Exit::Broken).
    ///
    /// # Cancel-Safety
    /// A pause that has begun goes on; [`Host::paused`](crate::Host::paused) finds its result.
    pub async fn pause(&self) -> Result<PausedSandbox> {
        let (record, report) = self.request("be paused", Request::Pause).await?;
        Ok(PausedSandbox::after(Arc::clone(self.registry()), record, report))
    }
}

impl Sandbox {
    /// Keeps the guest's memory, drive and devices on disk, as a [pause](Self::pause) does, while the guest goes on: it stands
    /// still only while the rest of its memory, its devices and its drive are copied. What was kept before is replaced.
    ///
    /// Where this program, the VM or the machine ends otherwise than by a pause or a kill, [`Host::paused`](crate::Host::paused)
    /// finds the sandbox as it was kept, and it goes on from there.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// sandbox.exec("make -j4").await?;
    /// sandbox.checkpoint().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`pause`](Self::pause). What was kept before stays.
    ///
    /// # Cancel-Safety
    /// A checkpoint that has begun goes on.
    pub async fn checkpoint(&self) -> Result<()> {
        self.request("be checkpointed", Request::Checkpoint).await.map(drop)
    }
}

/// A paused sandbox. Any program that opens the data directory can resume it, until it is deleted.
///
/// ```no_run
/// # async fn demo(sandbox: wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// let paused = sandbox.pause().await?;
/// println!("{} is on disk, with {} more bytes", paused.id(), paused.stored_bytes());
/// let sandbox = paused.resume().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct PausedSandbox {
    registry: Arc<Registry>,
    record: PausedRecord,
    report: Option<Box<SaveReport>>,
}

impl PausedSandbox {
    /// Finds the pause of a sandbox on disk.
    pub(crate) async fn find(registry: Arc<Registry>, id: &SandboxId) -> Result<Self> {
        let path = registry.site.data.sandbox(id);
        let record = blocking("read the pause", move || record::read::<PausedRecord>(&path)).await??;
        let missing = || {
            Error::not_found(
                Subject::Sandbox(id.clone()),
                format!("no sandbox {id} is paused; `Host::sandboxes` lists what there is"),
            )
        };
        Ok(Self { record: record.ok_or_else(missing)?, registry, report: None })
    }

    /// A pause that was just made.
    fn after(registry: Arc<Registry>, record: PausedRecord, report: Option<SaveReport>) -> Self {
        Self { registry, record, report: report.map(Box::new) }
    }

    /// The sandbox's identity, which a resume keeps.
    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.record.fixed.id
    }

    /// The sandbox's properties, as they were when this handle was made.
    #[must_use]
    pub fn info(&self) -> SandboxInfo {
        self.record.info(SandboxState::Paused)
    }

    #[cfg(test)]
    pub(crate) fn generation(&self) -> wrenn_snapshot::GenerationId {
        self.record.generation
    }

    /// How much this pause stored of memory, drive and devices, in bytes. What earlier pauses stored is not counted.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.record.stored_bytes
    }

    /// Reports how long the steps of this pause took; `None` where the pause was found on disk.
    #[must_use]
    pub fn save_report(&self) -> Option<SaveReport> {
        self.report.as_deref().copied()
    }

    /// Runs the sandbox again. Its memory comes in when it is touched, unless [`Paging`](crate::Paging) says otherwise.
    /// The processes go on where they were. The guest's clock is set, and it gets new randomness and a new token.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox runs already: if a connection has woken it,
    /// [`Host::sandbox`](crate::Host::sandbox) gives a handle. [`Error::NotFound`] where it was removed,
    /// [`Error::Corrupt`] for damaged data, [`Error::Host`] where this machine cannot run it. The pause is kept in each
    /// case.
    ///
    /// # Cancel-Safety
    /// Cancelling undoes the resume; the pause is kept.
    pub async fn resume(&self) -> Result<Sandbox> {
        Ok(Sandbox::new(self.restart().await?, Arc::clone(&self.registry)))
    }

    /// Runs the sandbox again, without a handle.
    pub(super) async fn restart(&self) -> Result<Arc<Shared>> {
        let asked = std::time::Instant::now();
        let lock = self.lock_patiently("be resumed").await?;
        let ports = self.registry.sleepers.claim(self.id()).await;
        let this = self.clone();
        let record = blocking("read the pause", move || this.current_record()).await??;
        self.registry.site.observer.at(Step::Load)?;
        let generation = template::load(&self.registry.site, record.generation).await?;
        let origin = Origin::Resumed { lock, ports };
        start(&self.registry, generation, record.fixed, origin, Asking::loaded(asked)).await
    }

    /// The ports that are published while the sandbox runs. Those with [`wake`](PublishedPort::wake) may be listened on now:
    /// see [`listen`](Self::listen).
    #[must_use]
    pub fn published(&self) -> Vec<PublishedPort> {
        self.record.fixed.published.clone()
    }

    /// Opens the published ports that wake the sandbox, in this program, and returns them. After a pause by this program they
    /// are open already; this is for a program that has found the pause on disk, such as the same one after its restart. One
    /// that cannot be opened says why; call this again to try again.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::{SandboxFilter, SandboxState};
    ///
    /// for info in host.sandboxes(&SandboxFilter::new().state(SandboxState::Paused)).await? {
    ///     for port in host.paused(&info.id).await?.listen().await? {
    ///         println!("{} wakes {}", port.address, info.id);
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox runs, [`Error::NotFound`] where it was removed, [`Error::Host`] where this
    /// host was shut down.
    ///
    /// # Cancel-Safety
    /// Cancelling opens none of them, or some.
    pub async fn listen(&self) -> Result<Vec<PublishedPort>> {
        self.registry.check_open()?;
        let lock = self.lock_patiently("listen for connections").await?;
        let mut asleep = self.registry.sleepers.claim(self.id()).await;
        let this = self.clone();
        let record = blocking("read the pause", move || this.current_record()).await??;
        let mut ports = Vec::new();
        for port in record.fixed.published.into_iter().filter(|port| port.wake) {
            let is_open = asleep.ports.iter().any(|asleep| asleep.port.address == port.address);
            let opened = if is_open { Ok(None) } else { SleepingPort::open(&port).await.map(Some) };
            let problem = opened.map(|opened| asleep.ports.extend(opened)).err().map(|error| error.to_string());
            ports.push(PublishedPort { problem, ..port });
        }
        drop(asleep);
        drop(lock);
        Ok(ports)
    }

    /// Merges earlier pauses whose data is mostly overwritten, and frees the overwritten data. Returns how many bytes
    /// of pages the sandbox no longer needs. Data that another sandbox or a template needs stays.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox was resumed, [`Error::NotFound`] where it was removed. Every error,
    /// such as [`Error::NoSpace`], leaves the pause as it was.
    ///
    /// # Cancel-Safety
    /// Cancelling does not stop a compaction that has begun.
    pub async fn compact(&self) -> Result<u64> {
        let lock = self.lock_patiently("be compacted").await?;
        // A connection waits meanwhile.
        let _ports = self.registry.sleepers.claim(self.id()).await;
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

    /// Reads the record again, since the sandbox may have been resumed and paused again, or removed, after this handle
    /// was made.
    fn current_record(&self) -> Result<PausedRecord> {
        let record = record::read::<PausedRecord>(&self.registry.site.data.sandbox(self.id()))?;
        record.ok_or_else(|| {
            self.registry.site.data.forget_lock(self.id().as_str());
            Error::not_found(Subject::Sandbox(self.id().clone()), format!("sandbox {} was removed", self.id()))
        })
    }

    /// Removes the sandbox, and closes its ports. Its stored data is deleted in the background soon afterwards, except what others depend on:
    /// [`Host::collect_garbage`](crate::Host::collect_garbage) waits for that. It succeeds where the sandbox was
    /// removed before.
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
    /// [`Error::InvalidState`] where the sandbox was resumed, by a connection too; [`Sandbox::kill`] ends it then.
    /// [`Error::Failed`] where its record cannot be removed.
    ///
    /// # Cancel-Safety
    /// Cancelling leaves the sandbox as it was, or removed.
    pub async fn delete(self) -> Result<()> {
        let lock = self.lock_patiently("be deleted").await?;
        let ports = self.registry.sleepers.claim(self.id()).await;
        blocking("delete the sandbox", move || {
            let site = &self.registry.site;
            record::remove(&site.data.sandbox(self.id()))?;
            drop(ports.take());
            site.data.forget_lock(self.id().as_str());
            drop(lock);
            site.tidy();
            Ok(())
        })
        .await?
    }

    /// Takes the sandbox's lock. It waits up to 250 ms for a holder that is about to release it: a sandbox whose last
    /// handle was dropped, or another handle that compacts the pause.
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
