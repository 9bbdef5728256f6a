//! The sandboxes of each key: what they are meant to be, and what they are.
//!
//! ```text
//!  asked ──▶ a task of its own, which a client that goes away does not end ──▶ wrenn-core ──▶ settle: the record
//!                                                                              its end ─────────▶  │
//!                                                                              each 30 seconds ──▶ │
//! ```
//!
//! A record is written from what is, under the lock of its sandbox, so that whoever comes last writes what is still so.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::stream;
use tokio::time::{MissedTickBehavior, interval};
use wrenn_core::{Error, Exit, Host, OnExpiry, Running, Sandbox, SandboxId, SandboxState, Template, TtlFrom};

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::templates;
use crate::store::contract::{SandboxRecord, Status, Store};

/// All sandboxes of this server.
#[derive(Debug)]
pub struct Sandboxes {
    host: Host,
    store: Arc<dyn Store>,
    /// A handle keeps its sandbox alive.
    running: Mutex<HashMap<SandboxId, Sandbox>>,
    /// Whoever changes a sandbox or its record has its lock; a kill waits for none.
    locks: Mutex<HashMap<SandboxId, Arc<tokio::sync::Mutex<()>>>>,
    is_closing: AtomicBool,
}

/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// An image's name, or a snapshot's.
    pub template: String,
    /// Its virtual processors; `None` takes the template's.
    pub vcpus: Option<u32>,
    /// Its memory, in MiB; `None` takes the template's.
    pub memory_mib: Option<u32>,
    /// After how many seconds without use it ends.
    pub timeout_sec: u32,
    /// Whether it is paused at that end, and not killed.
    pub pauses_at_timeout: bool,
    /// The environment of each of its commands.
    pub envs: Vec<(String, String)>,
}

/// A sandbox as its record and `wrenn-core` have it.
#[derive(Debug, Clone)]
pub struct Found {
    /// What was asked for.
    pub record: SandboxRecord,
    /// When it was last used; `None` where it does not run.
    pub last_active_at: Option<SystemTime>,
}

impl Sandboxes {
    /// Takes over what an earlier server has left: what ran is woken from its last pause, and what has none is stopped.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn open(host: Host, store: Arc<dyn Store>) -> Result<Arc<Self>, ServiceError> {
        let this = Arc::new(Self {
            host,
            store,
            running: Mutex::default(),
            locks: Mutex::default(),
            is_closing: AtomicBool::new(false),
        });
        let left = this.store.sandboxes_with(Status::Running).await?;
        stream::iter(left).for_each_concurrent(WOKEN_AT_ONCE, |record| this.wake(record)).await;
        Ok(this)
    }

    async fn wake(self: &Arc<Self>, record: SandboxRecord) {
        match self.host.paused(&record.id).await {
            Ok(paused) => match paused.resume().await {
                Ok(sandbox) => self.keep(sandbox),
                Err(error) => tracing::error!(id = %record.id, %error, "a sandbox was not woken, and stays paused"),
            },
            Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::error!(id = %record.id, %error, "a sandbox's pause cannot be read"),
        }
        self.settle(&record.id, None, false).await;
    }

    /// Makes a sandbox.
    ///
    /// # Errors
    /// As [`SandboxBuilder::create`](wrenn_core::SandboxBuilder::create); [`ServiceError::Store`], and then it is gone again.
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn create(self: &Arc<Self>, owner: &str, wanted: Wanted) -> Result<Found, ServiceError> {
        self.take_nothing_more_while_closing()?;
        let (this, owner) = (Arc::clone(self), owner.to_owned());
        let work = async move {
            let mut builder = Sandbox::builder(&this.host, &wanted.template)
                .ttl(Duration::from_secs(wanted.timeout_sec.into()))
                .ttl_from(TtlFrom::LastUse)
                .on_expiry(if wanted.pauses_at_timeout { OnExpiry::Pause } else { OnExpiry::Kill });
            if let Some(vcpus) = wanted.vcpus {
                builder = builder.vcpus(vcpus);
            }
            if let Some(memory_mib) = wanted.memory_mib {
                builder = builder.memory_mib(memory_mib);
            }
            builder = wanted.envs.into_iter().fold(builder, |builder, (name, value)| builder.env(name, value));
            templates::check(&*this.store, &owner, &wanted.template).await?;
            let sandbox = builder.create().await?;
            let timeout = (wanted.timeout_sec, wanted.pauses_at_timeout);
            this.add(sandbox, &owner, timeout).await
        };
        tokio::spawn(work).await?
    }

    /// The sandbox of this id, if it is the owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Store`].
    pub async fn find(&self, owner: &str, id: &str) -> Result<Found, ServiceError> {
        self.record(owner, id).await.map(|record| self.found(record))
    }

    /// All of an owner's, the newest first.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn list(&self, owner: &str) -> Result<Vec<Found>, ServiceError> {
        let records = self.store.sandboxes_of(owner).await?;
        Ok(records.into_iter().map(|record| self.found(record)).collect())
    }

    /// A handle to one that runs.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Over`], [`ServiceError::Store`], and
    /// [`Error::InvalidState`] for one that is paused.
    pub async fn running(&self, owner: &str, id: &str, operation: &'static str) -> Result<Sandbox, ServiceError> {
        let record = self.record(owner, id).await?;
        let kept = lock(&self.running).get(&record.id).cloned();
        match (kept, record.status) {
            (Some(sandbox), _) => Ok(sandbox),
            (None, Status::Running | Status::Paused) => {
                let (id, state) = (record.id, SandboxState::Paused);
                Err(Error::InvalidState { id, operation, state, exit: None }.into())
            }
            (None, status) => Err(ServiceError::Over { id: record.id, status: status.name(), why: record.why }),
        }
    }

    /// Pauses one that runs.
    ///
    /// # Errors
    /// As [`running`](Self::running) and [`Sandbox::pause`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn pause(self: &Arc<Self>, owner: &str, id: &str) -> Result<Found, ServiceError> {
        let sandbox = self.running(owner, id, "be paused").await?;
        let this = Arc::clone(self);
        let work = async move {
            let locked = this.lock_of(sandbox.id());
            let change = locked.lock().await;
            sandbox.pause().await?;
            drop(change);
            this.settle(sandbox.id(), None, false).await;
            Ok::<_, ServiceError>(())
        };
        tokio::spawn(work).await??;
        self.find(owner, id).await
    }

    /// Resumes one that is paused.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Over`], [`ServiceError::Store`], those of
    /// [`PausedSandbox::resume`](wrenn_core::PausedSandbox::resume), and
    /// [`Error::InvalidState`] for one that runs.
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn resume(self: &Arc<Self>, owner: &str, id: &str) -> Result<Found, ServiceError> {
        self.take_nothing_more_while_closing()?;
        let record = self.record(owner, id).await?;
        let this = Arc::clone(self);
        let work = async move {
            let SandboxRecord { id, status, why, .. } = record;
            let locked = this.lock_of(&id);
            let change = locked.lock().await;
            if lock(&this.running).contains_key(&id) {
                let (operation, state) = ("be resumed", SandboxState::Running);
                return Err(Error::InvalidState { id, operation, state, exit: None }.into());
            }
            if matches!(status, Status::Stopped | Status::Error) {
                return Err(ServiceError::Over { id, status: status.name(), why });
            }
            let sandbox = this.host.paused(&id).await?.resume().await?;
            this.keep(sandbox);
            drop(change);
            this.settle(&id, None, true).await;
            Ok(())
        };
        tokio::spawn(work).await??;
        self.find(owner, id).await
    }

    /// Forks one that runs: each child, or why there is none.
    ///
    /// # Errors
    /// As [`running`](Self::running) and [`Sandbox::fork`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn fork(
        self: &Arc<Self>,
        owner: &str,
        id: &str,
        count: usize,
    ) -> Result<Vec<Result<Found, ServiceError>>, ServiceError> {
        self.take_nothing_more_while_closing()?;
        let record = self.record(owner, id).await?;
        let sandbox = self.running(owner, id, "be forked").await?;
        let this = Arc::clone(self);
        let work = async move {
            let mut children = Vec::with_capacity(count);
            let timeout = (record.timeout_sec, record.pauses_at_timeout);
            for child in sandbox.fork(count).await? {
                children.push(match child {
                    Ok(child) => this.add(child, &record.owner, timeout).await,
                    Err(error) => Err(error.into()),
                });
            }
            Ok(children)
        };
        tokio::spawn(work).await?
    }

    /// Makes a template of one that runs, of a name that nobody has.
    ///
    /// # Errors
    /// As [`running`](Self::running) and [`Sandbox::snapshot`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn snapshot(self: &Arc<Self>, owner: &str, id: &str, name: String) -> Result<Template, ServiceError> {
        let sandbox = self.running(owner, id, "be snapshotted").await?;
        let (this, owner) = (Arc::clone(self), owner.to_owned());
        let work = async move { templates::snapshot(&*this.store, &sandbox, &owner, name).await };
        tokio::spawn(work).await?
    }

    /// The images, and the owner's snapshots.
    ///
    /// # Errors
    /// [`ServiceError::Store`], and those of [`Host::templates`].
    pub async fn templates(&self, owner: &str) -> Result<Vec<Template>, ServiceError> {
        templates::list(&self.host, &*self.store, owner).await
    }

    /// Removes a snapshot of the owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`], [`ServiceError::Store`], and those of [`Host::remove_template`].
    pub async fn remove_snapshot(&self, owner: &str, name: &str) -> Result<(), ServiceError> {
        templates::remove(&self.host, &*self.store, owner, name).await
    }

    /// Ends one, and removes everything of it but its record. One that has ended stays so.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Store`], and those of [`Sandbox::kill`] and
    /// [`PausedSandbox::delete`](wrenn_core::PausedSandbox::delete).
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn delete(self: &Arc<Self>, owner: &str, id: &str) -> Result<(), ServiceError> {
        let record = self.record(owner, id).await?;
        let this = Arc::clone(self);
        let work = async move {
            let kill = async || {
                let running = lock(&this.running).get(&record.id).cloned();
                if let Some(sandbox) = running { sandbox.kill().await } else { Ok(()) }
            };
            // It wins against whatever is under way, and so waits for no lock.
            kill().await?;
            let locked = this.lock_of(&record.id);
            let change = locked.lock().await;
            // What was being resumed runs by now.
            kill().await?;
            match this.host.paused(&record.id).await {
                Ok(paused) => paused.delete().await?,
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            drop(change);
            this.settle(&record.id, Some(Exit::Killed), false).await;
            Ok(())
        };
        tokio::spawn(work).await?
    }

    /// Compares each record with what is, each half minute, until it is dropped.
    pub async fn reconcile(self: Arc<Self>) {
        let mut ticks = interval(RECONCILED_EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for status in [Status::Running, Status::Paused] {
                match self.store.sandboxes_with(status).await {
                    Ok(records) => {
                        for record in records {
                            self.settle_unless_changing(&record.id).await;
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the records are not compared with what runs"),
                }
            }
        }
    }

    /// Pauses what runs, and takes nothing more. The records stay as they are: the next server wakes what ran. Returns those
    /// that could not be paused.
    ///
    /// # Cancel-Safety
    /// As [`Host::shutdown`].
    pub async fn close(&self) -> Vec<(SandboxId, Error)> {
        self.is_closing.store(true, Ordering::Relaxed);
        self.host.shutdown(Running::Pause).await
    }

    fn take_nothing_more_while_closing(&self) -> Result<(), ServiceError> {
        if self.is_closing() { Err(ServiceError::Closing) } else { Ok(()) }
    }

    async fn record(&self, owner: &str, id: &str) -> Result<SandboxRecord, ServiceError> {
        let none = || ServiceError::NoSandbox { id: id.to_owned() };
        let parsed: SandboxId = id.parse().map_err(|_| none())?;
        // Another's is none: nobody learns whether it is there.
        self.store.sandbox(&parsed).await?.filter(|record| record.owner == owner).ok_or_else(none)
    }

    fn found(&self, record: SandboxRecord) -> Found {
        let expires_at = lock(&self.running).get(&record.id).and_then(|sandbox| sandbox.info().expires_at);
        let timeout = Duration::from_secs(record.timeout_sec.into());
        let last_active_at = expires_at.and_then(|end| end.checked_sub(timeout));
        Found { record, last_active_at }
    }

    /// Adds the record of one that runs, whose time-out in seconds and what becomes of it then are `timeout`.
    async fn add(
        self: &Arc<Self>,
        sandbox: Sandbox,
        owner: &str,
        (timeout_sec, pauses_at_timeout): (u32, bool),
    ) -> Result<Found, ServiceError> {
        let (info, now) = (sandbox.info(), now_ms());
        let record = SandboxRecord {
            id: info.id,
            owner: owner.to_owned(),
            template: info.template.to_string(),
            vcpus: info.vcpus,
            memory_mib: info.memory_mib,
            timeout_sec,
            pauses_at_timeout,
            status: Status::Running,
            why: None,
            created_at_ms: now,
            started_at_ms: now,
            updated_at_ms: now,
        };
        if let Err(error) = self.store.add_sandbox(&record).await {
            // Nobody could find it.
            sandbox.kill().await?;
            return Err(error.into());
        }
        self.keep(sandbox);
        Ok(self.found(record))
    }

    /// Keeps one alive, and notes its end.
    fn keep(self: &Arc<Self>, sandbox: Sandbox) {
        lock(&self.running).insert(sandbox.id().clone(), sandbox.clone());
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
        let mut locks = lock(&self.locks);
        // Those that nobody has.
        if locks.len() > LOCKS_MAX {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        Arc::clone(locks.entry(id.clone()).or_default())
    }

    async fn settle_unless_changing(&self, id: &SandboxId) {
        let locked = self.lock_of(id);
        if let Ok(_change) = locked.try_lock()
            && !self.is_closing()
        {
            self.write(id, None, false).await;
        }
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Writes into a record what is. `exit` is why the sandbox no longer runs, where no handle of it can tell, and `started`
    /// whether it has just begun to.
    async fn settle(&self, id: &SandboxId, exit: Option<Exit>, started: bool) {
        let locked = self.lock_of(id);
        let _change = locked.lock().await;
        self.write(id, exit, started).await;
    }

    async fn write(&self, id: &SandboxId, exit: Option<Exit>, started: bool) {
        if let Err(error) = self.try_write(id, exit, started).await {
            // The next comparison writes it.
            tracing::warn!(%id, %error, "a sandbox's record was not brought up to date");
        }
    }

    async fn try_write(&self, id: &SandboxId, exit: Option<Exit>, started: bool) -> Result<(), ServiceError> {
        let Some(record) = self.store.sandbox(id).await? else { return Ok(()) };
        let (status, why) = self.status(&record, exit).await?;
        if status != record.status || started {
            self.store.set_status(id, status, why.as_deref(), started, now_ms()).await?;
        }
        Ok(())
    }

    async fn status(
        &self,
        record: &SandboxRecord,
        exit: Option<Exit>,
    ) -> Result<(Status, Option<String>), ServiceError> {
        let kept = lock(&self.running).get(&record.id).cloned();
        let exit = match kept {
            Some(sandbox) if matches!(sandbox.state(), SandboxState::Paused | SandboxState::Ended) => {
                lock(&self.running).remove(&record.id);
                // It is over, and says why at once.
                Some(sandbox.wait().await)
            }
            Some(_) => return Ok((Status::Running, None)),
            None => exit,
        };
        if matches!(record.status, Status::Stopped | Status::Error) {
            return Ok((record.status, record.why.clone()));
        }
        match self.host.paused(&record.id).await {
            Ok(_) => Ok((Status::Paused, None)),
            Err(Error::NotFound { .. }) => Ok(match exit {
                Some(exit @ (Exit::Killed | Exit::Expired)) => (Status::Stopped, Some(exit.to_string())),
                Some(exit) => (Status::Error, Some(exit.to_string())),
                None => (Status::Stopped, Some("the server ended, and it had no pause".to_owned())),
            }),
            Err(error) => Err(error.into()),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A resume takes the host's memory and disk for itself.
const WOKEN_AT_ONCE: usize = 4;
const RECONCILED_EACH: Duration = Duration::from_secs(30);
const LOCKS_MAX: usize = 1024;
