//! The sandboxes of each key: what they are meant to be, and what they are.
//!
//! ```text
//!  asked ──▶ a task of its own, which a client that goes away does not end ──▶ wrenn-core ──▶ settle: the record
//!                                                                              its end ─────────▶  │
//!                                                                              each 30 seconds ──▶ │
//! ```
//!
//! A record is written from what is, under the lock of its sandbox, so that whoever comes last writes what is still so.

pub mod building;
pub mod built;
mod checkpoints;
mod kept_builds;
pub mod life;
pub mod making;
mod measured;
mod pressure;
mod pulled_images;
pub mod reach;
mod settle;
pub mod stored;
pub mod tend;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures::StreamExt as _;
use futures::stream;
use tokio::sync::Notify;
use wrenn_core::{Error, GuestMetrics, Host, Running, Sandbox, SandboxId, SandboxState, Template};

use crate::service::admission::{Admission, Capacity, Share};
use crate::service::builds::Builds;
use crate::service::builds::files::Files;
use crate::service::builds::registries::Registries;
use crate::service::egress_proxy::Credentials;
use crate::service::error::ServiceError;
use crate::service::events::Events;
use crate::service::history::History;
use crate::service::meters::Meters;
use crate::service::run::Run;
use crate::service::templates;
use crate::store::contract::Store;
use crate::store::records::{Asked, Page, SandboxRecord, Status, Terms, Usage};

/// All sandboxes of this server.
#[derive(Debug)]
pub struct Sandboxes {
    host: Host,
    store: Arc<dyn Store>,
    events: Events,
    history: History,
    meters: Arc<Meters>,
    admission: Admission,
    builds: Builds,
    running: Mutex<HashMap<SandboxId, Kept>>,
    /// Of those that run.
    credentials: Credentials,
    /// Told when one begins to run, and when one no longer does.
    changed: Notify,
    /// Whoever changes a sandbox or its record has its lock; a kill waits for none. The same of the names of snapshots.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// The requests with a key of their own that are under way, by their owner and that key.
    requests: Mutex<HashSet<(String, String)>>,
    is_closing: AtomicBool,
}

/// One that runs.
#[derive(Debug, Clone)]
struct Kept {
    /// A handle keeps its sandbox alive.
    sandbox: Sandbox,
    /// As it was when it began to run, or when what was asked for was changed.
    record: Arc<SandboxRecord>,
    run: Arc<Run>,
    _share: Arc<Share>,
}

/// What a sandbox is to be.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// An image's name, or a snapshot's, or a name with a tag that stands for one.
    pub template: String,
    /// Its virtual processors; `None` takes the template's.
    pub vcpus: Option<u32>,
    /// Its memory, in MiB; `None` takes the template's.
    pub memory_mib: Option<u32>,
    /// After how many seconds it ends.
    pub timeout_sec: u32,
    /// Whether it is paused at that end, and not killed.
    pub pauses_at_timeout: bool,
    /// The environment of each of its commands.
    pub envs: Vec<(String, String)>,
    /// What else there is to it.
    pub asked: Asked,
}

/// A sandbox as its record and `wrenn-core` have it.
#[derive(Debug, Clone)]
pub struct Found {
    /// What was asked for.
    pub record: SandboxRecord,
    /// When it was last used; `None` where it does not run.
    pub last_active_at: Option<SystemTime>,
    /// When its time is over; `None` where it does not run.
    pub ends_at: Option<SystemTime>,
}

impl Sandboxes {
    /// Takes over what an earlier server has left: what ran is woken from its last pause, and what has none is stopped. The
    /// `credentials` are those that the host asks for.
    ///
    /// # Errors
    /// [`ServiceError::Store`], and those of [`Host::templates`].
    pub async fn open(
        host: Host,
        store: Arc<dyn Store>,
        capacity: Capacity,
        registries: Registries,
        credentials: Credentials,
    ) -> Result<Arc<Self>, ServiceError> {
        let meters = Arc::new(Meters::default());
        let files = Files::new(host.data_dir().join("server/build-files"));
        let this = Arc::new(Self {
            host,
            builds: Builds::new(files, registries),
            events: Events::new(Arc::clone(&store)),
            store,
            history: History::default(),
            admission: Admission::new(capacity, Arc::clone(&meters)),
            meters,
            running: Mutex::default(),
            credentials,
            changed: Notify::new(),
            locks: Mutex::default(),
            requests: Mutex::default(),
            is_closing: AtomicBool::new(false),
        });
        this.sweep_builds().await?;
        let left = this.store.sandboxes_with(Status::Running).await?;
        stream::iter(left).for_each_concurrent(WOKEN_AT_ONCE, |record| this.wake(record)).await;
        Ok(this)
    }

    /// What happens to them.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The sandbox of this id, if it is the owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Store`].
    pub async fn find(&self, owner: &str, id: &str) -> Result<Found, ServiceError> {
        self.record(owner, id).await.map(|record| self.found(record))
    }

    /// A page of an owner's.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn page(&self, page: &Page<'_>) -> Result<Vec<Found>, ServiceError> {
        let records = self.store.page(page).await?;
        Ok(records.into_iter().map(|record| self.found(record)).collect())
    }

    /// What an owner's running ones have together.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn usage(&self, owner: &str) -> Result<Usage, ServiceError> {
        Ok(self.store.usage(owner).await?)
    }

    /// A handle to one that runs.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Over`], [`ServiceError::Store`], and
    /// [`Error::InvalidState`] for one that is paused.
    pub async fn running(&self, owner: &str, id: &str, operation: &'static str) -> Result<Sandbox, ServiceError> {
        let kept = id.parse().ok().and_then(|id| self.kept(&id)).filter(|kept| kept.record.owner == owner);
        if let Some(kept) = kept {
            return Ok(kept.sandbox);
        }
        let SandboxRecord { id, status, why, .. } = self.record(owner, id).await?;
        match (self.kept(&id), status) {
            // It has just begun to run.
            (Some(kept), _) => Ok(kept.sandbox),
            (None, Status::Running | Status::Paused) => {
                Err(Error::InvalidState { id, operation, state: SandboxState::Paused, exit: None }.into())
            }
            (None, status) => Err(ServiceError::Over { id, status: status.name(), why }),
        }
    }

    /// How much one uses of its machine: what was measured since it was made, the newest last, and once more now where it
    /// runs.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Store`].
    pub async fn metrics(&self, owner: &str, id: &str) -> Result<Vec<GuestMetrics>, ServiceError> {
        let record = self.record(owner, id).await?;
        if let Some(kept) = self.kept(&record.id) {
            self.history.measure(&kept.sandbox).await;
        }
        Ok(self.history.of(&record.id))
    }

    /// The images, and the owner's snapshots, but not what was built.
    ///
    /// # Errors
    /// [`ServiceError::Store`], and those of [`Host::templates`].
    pub async fn templates(&self, owner: &str) -> Result<Vec<Template>, ServiceError> {
        templates::list_plain(&self.host, &*self.store, owner).await
    }

    /// All that an owner may make sandboxes of, also what was built, by the library's names.
    pub(super) async fn all_templates(&self, owner: &str) -> Result<Vec<Template>, ServiceError> {
        templates::list(&self.host, &*self.store, owner).await
    }

    /// The names of the owner's snapshots, sorted; or of those that were made of one sandbox. What was built is none.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn snapshots(&self, owner: &str, source: Option<&str>) -> Result<Vec<String>, ServiceError> {
        let all = self.store.snapshots().await?.into_iter();
        let own = all.filter(|record| {
            record.owner == owner
                && source.is_none_or(|source| record.source == source)
                && !templates::is_made_by_builds(record)
        });
        Ok(own.map(|record| record.name).collect())
    }

    /// Removes a snapshot of the owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`], [`ServiceError::Store`], and those of [`Host::remove_template`].
    pub async fn remove_snapshot(&self, owner: &str, name: &str) -> Result<(), ServiceError> {
        let locked = self.lock_of_snapshot(name);
        let _change = locked.lock().await;
        templates::remove(&self.host, &*self.store, owner, name).await
    }

    /// Pauses what runs, and takes nothing more. The records stay as they are: the next server wakes what ran. Returns those
    /// that could not be paused.
    ///
    /// # Cancel-Safety
    /// As [`Host::shutdown`].
    pub async fn close(&self) -> Vec<(SandboxId, Error)> {
        self.is_closing.store(true, Ordering::Relaxed);
        self.events.close();
        // Their guests are nobody's to resume.
        self.builds.close().await;
        self.host.shutdown(Running::Pause).await
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn take_nothing_more_while_closing(&self) -> Result<(), ServiceError> {
        if self.is_closing() { Err(ServiceError::Closing) } else { Ok(()) }
    }

    /// Waits until any sandbox begins to run or no longer does, from this call on.
    pub fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Whether the server ends, and what is paused stays so.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    async fn record(&self, owner: &str, id: &str) -> Result<SandboxRecord, ServiceError> {
        let none = || ServiceError::NoSandbox { id: id.to_owned() };
        let parsed: SandboxId = id.parse().map_err(|_| none())?;
        // Another's is none: nobody learns whether it is there.
        self.store.sandbox(&parsed).await?.filter(|record| record.owner == owner).ok_or_else(none)
    }

    /// What a key may do; nothing is limited where there are no keys.
    async fn terms(&self, owner: &str) -> Result<Terms, ServiceError> {
        Ok(self.store.key(owner).await?.map(|key| key.terms).unwrap_or_default())
    }

    fn found(&self, record: SandboxRecord) -> Found {
        let info = self.kept(&record.id).map(|kept| kept.sandbox.info());
        let (ends_at, last_active_at) = info.map_or((None, None), |info| (info.expires_at, info.last_used_at));
        Found { record, last_active_at, ends_at }
    }

    fn kept(&self, id: &SandboxId) -> Option<Kept> {
        lock(&self.running).get(id).cloned()
    }

    /// Keeps one alive, and notes its end.
    fn keep(self: &Arc<Self>, sandbox: Sandbox, record: SandboxRecord, share: Share) {
        self.credentials.know(&record);
        let run = Arc::new(Run::of(&record, Arc::clone(&self.meters)));
        let kept = Kept { sandbox: sandbox.clone(), record: Arc::new(record), run, _share: Arc::new(share) };
        lock(&self.running).insert(sandbox.id().clone(), kept);
        self.changed.notify_waiters();
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let exit = sandbox.wait().await;
            // What the server's own end pauses is to run again, and its record says so.
            if !this.is_closing() {
                this.settle(sandbox.id(), Some(exit), false).await;
            }
        });
    }

    fn lock_of(&self, id: &SandboxId) -> Arc<tokio::sync::Mutex<()>> {
        self.lock_named(id.to_string())
    }

    fn lock_of_snapshot(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.lock_named(format!("snapshot:{name}"))
    }

    fn lock_named(&self, name: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = lock(&self.locks);
        // Those that nobody has.
        if locks.len() > LOCKS_MAX {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(locks.entry(name).or_default())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A resume takes the host's memory and disk for itself.
const WOKEN_AT_ONCE: usize = 4;
const LOCKS_MAX: usize = 1024;
