//! Sandboxes are paused, resumed, given more time, and ended.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::Instrument as _;
use wrenn_core::{Error, Exit, NetworkPolicy, Sandbox, SandboxId, SandboxState};

use crate::service::admission::Share;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::events::EventKind;
use crate::service::meters::Work;
use crate::service::network;
use crate::service::sandboxes::{Found, Kept, Sandboxes, lock};
use crate::store::records::{Asked, Network, SandboxRecord, Status};

/// What a connect has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Was {
    /// It ran.
    Running,
    /// It was paused, and was resumed.
    Paused,
}

impl Sandboxes {
    /// Pauses one that runs.
    ///
    /// # Errors
    /// As [`running`](Self::running) and [`Sandbox::pause`]; and [`ServiceError::StoredLimit`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn pause(self: &Arc<Self>, owner: &str, id: &str) -> Result<Found, ServiceError> {
        let sandbox = self.running(owner, id, "be paused").await?;
        let (this, of) = (Arc::clone(self), owner.to_owned());
        let work = async move {
            let _room = this.room_to_store(&of).await?;
            this.pause_in_any_case(sandbox).await
        };
        tokio::spawn(work.in_current_span()).await??;
        self.find(owner, id).await
    }

    /// Pauses one that runs, whatever is kept for its owner. It goes on when it is cancelled.
    pub(super) async fn pause_in_any_case(self: &Arc<Self>, sandbox: Sandbox) -> Result<(), ServiceError> {
        let this = Arc::clone(self);
        let work = async move {
            let locked = this.lock_of(sandbox.id());
            let _change = locked.lock().await;
            if let Some(kept) = this.kept(sandbox.id()) {
                kept.run.count_memory(&sandbox).await;
            }
            this.meters.time(Work::Pause, async { Ok(sandbox.pause().await?) }).await?;
            // Before whoever waits for its end does: the event is this request's.
            this.write(sandbox.id(), None, false).await;
            Ok(())
        };
        tokio::spawn(work.in_current_span()).await?
    }

    /// Resumes one that is paused.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Over`], [`ServiceError::Store`], those of the key's limits and of the room
    /// that there is, those of [`PausedSandbox::resume`](wrenn_core::PausedSandbox::resume), and
    /// [`Error::InvalidState`] for one that runs.
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn resume(self: &Arc<Self>, owner: &str, id: &str) -> Result<Found, ServiceError> {
        let record = self.record(owner, id).await?;
        let (id, operation, state) = (record.id.clone(), "be resumed", SandboxState::Running);
        match self.resume_unless_running(record, None).await? {
            (_, Was::Running) => Err(Error::InvalidState { id, operation, state, exit: None }.into()),
            (_, Was::Paused) => self.find(owner, id.as_str()).await,
        }
    }

    /// Resumes one if it is paused, and has it live for so many seconds from now at least: its end is put off, and never
    /// brought nearer.
    ///
    /// # Errors
    /// As [`resume`](Self::resume), but for one that runs.
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn connect(
        self: &Arc<Self>,
        owner: &str,
        id: &str,
        timeout_sec: u32,
    ) -> Result<(Found, Was), ServiceError> {
        let record = self.record(owner, id).await?;
        let (id, (sandbox, was)) = (record.id.clone(), self.resume_unless_running(record, Some(timeout_sec)).await?);
        if was == Was::Running {
            self.put_off(&sandbox, timeout_sec).await?;
        }
        Ok((self.find(owner, id.as_str()).await?, was))
    }

    /// Has one end so many seconds from now. One that is paused has so many after its resume.
    ///
    /// # Errors
    /// [`ServiceError::NoSandbox`], [`ServiceError::Over`], [`ServiceError::Store`].
    pub async fn set_timeout(&self, owner: &str, id: &str, timeout_sec: u32) -> Result<(), ServiceError> {
        let record = self.record(owner, id).await?;
        if matches!(record.status, Status::Stopped | Status::Error) {
            return Err(ServiceError::Over { id: record.id, status: record.status.name(), why: record.why });
        }
        if let Some(kept) = self.kept(&record.id) {
            kept.sandbox.set_ttl(Some(Duration::from_secs(timeout_sec.into()))).await?;
        }
        self.store.set_timeout(&record.id, timeout_sec, now_ms()).await?;
        self.events.note(&record, EventKind::Updated, Some("its time-out")).await;
        Ok(())
    }

    /// Has one that runs live for so many seconds from now at least.
    ///
    /// # Errors
    /// As [`running`](Self::running).
    pub async fn extend(&self, owner: &str, id: &str, timeout_sec: u32) -> Result<(), ServiceError> {
        let sandbox = self.running(owner, id, "be given more time").await?;
        self.put_off(&sandbox, timeout_sec).await
    }

    /// Changes what one that runs may reach; who may reach it stays as it was.
    ///
    /// # Errors
    /// As [`running`](Self::running) and [`Sandbox::set_network`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn set_network(self: &Arc<Self>, owner: &str, id: &str, wanted: Network) -> Result<(), ServiceError> {
        let policy = network::policy(&wanted)?;
        let sandbox = self.running(owner, id, "be given another network").await?;
        let (this, owner) = (Arc::clone(self), owner.to_owned());
        let work = async move { this.change_network(&owner, &sandbox, policy, wanted).await };
        tokio::spawn(work.in_current_span()).await?
    }

    async fn change_network(
        &self,
        owner: &str,
        sandbox: &Sandbox,
        policy: NetworkPolicy,
        wanted: Network,
    ) -> Result<(), ServiceError> {
        let locked = self.lock_of(sandbox.id());
        let _change = locked.lock().await;
        sandbox.set_network(policy).await?;
        let record = self.record(owner, sandbox.id().as_str()).await?;
        let network = Network { inbound: record.asked.network.inbound.clone(), ..wanted };
        let asked = Asked { network, ..record.asked.clone() };
        self.store.set_asked(&record.id, &asked, now_ms()).await?;
        if let Some(kept) = lock(&self.running).get_mut(&record.id) {
            kept.record = Arc::new(SandboxRecord { asked, ..record.clone() });
            self.credentials.know(&kept.record);
        }
        self.events.note(&record, EventKind::Updated, Some("its network")).await;
        Ok(())
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
        let work = async move { this.meters.time(Work::Kill, this.end(&record.id)).await };
        tokio::spawn(work.in_current_span()).await?
    }

    async fn end(&self, id: &SandboxId) -> Result<(), ServiceError> {
        if let Some(Kept { sandbox, run, .. }) = self.kept(id) {
            run.count_memory(&sandbox).await;
        }
        let kill = async || match self.kept(id) {
            Some(kept) => kept.sandbox.kill().await,
            None => Ok(()),
        };
        let locked = self.lock_of(id);
        // It wins against whatever is under way, and so waits for no lock.
        let at_once = locked.try_lock().ok();
        kill().await?;
        let _change = match at_once {
            Some(change) => change,
            None => locked.lock().await,
        };
        // What was being resumed runs by now.
        kill().await?;
        match self.host.paused(id).await {
            Ok(paused) => paused.delete().await?,
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.write(id, Some(Exit::Killed), false).await;
        Ok(())
    }

    /// Wakes one that an earlier server has paused at its end.
    pub(super) async fn wake(self: &Arc<Self>, record: SandboxRecord) {
        let id = record.id.clone();
        match self.host.paused(&id).await {
            Ok(_) => match self.resume_unless_running(record, None).await {
                Ok(_) => {}
                Err(error) => tracing::error!(%id, %error, "a sandbox was not woken, and stays paused"),
            },
            Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::error!(%id, %error, "a sandbox's pause cannot be read"),
        }
        self.settle(&id, None, false).await;
    }

    /// Resumes one that is paused, for `timeout_sec` or for what was last asked for. It goes on when it is cancelled.
    pub(super) async fn resume_unless_running(
        self: &Arc<Self>,
        record: SandboxRecord,
        timeout_sec: Option<u32>,
    ) -> Result<(Sandbox, Was), ServiceError> {
        self.take_nothing_more_while_closing()?;
        let this = Arc::clone(self);
        let work = async move {
            let locked = this.lock_of(&record.id);
            let change = locked.lock().await;
            if let Some(sandbox) = this.at_work(&record.id) {
                return Ok((sandbox, Was::Running));
            }
            // It may have ended since, or have been given another time-out.
            let record = this.record(&record.owner, record.id.as_str()).await?;
            let SandboxRecord { id, status, why, .. } = &record;
            if matches!(status, Status::Stopped | Status::Error) {
                return Err(ServiceError::Over { id: id.clone(), status: status.name(), why: why.clone() });
            }
            let (sandbox, share) = this.meters.time(Work::Resume, this.resume_now(&record)).await?;
            let seconds = timeout_sec.unwrap_or(record.timeout_sec);
            sandbox.set_ttl(Some(Duration::from_secs(seconds.into()))).await?;
            if seconds != record.timeout_sec {
                this.store.set_timeout(id, seconds, now_ms()).await?;
            }
            let id = id.clone();
            this.keep(sandbox.clone(), record, share);
            drop(change);
            this.settle(&id, None, true).await;
            Ok((sandbox, Was::Paused))
        };
        tokio::spawn(work.in_current_span()).await?
    }

    async fn resume_now(&self, record: &SandboxRecord) -> Result<(Sandbox, Share), ServiceError> {
        let paused = self.host.paused(&record.id).await?;
        let terms = self.terms(&record.owner).await?;
        let share = self.admission.admit(&record.owner, &terms, record.vcpus, record.memory_mib).await?;
        Ok((paused.resume().await?, share))
    }

    /// The handle of one that runs; none of one that is paused or over, though its end is not noted yet.
    fn at_work(&self, id: &SandboxId) -> Option<Sandbox> {
        let sandbox = self.kept(id)?.sandbox;
        (!matches!(sandbox.state(), SandboxState::Paused | SandboxState::Ended)).then_some(sandbox)
    }

    async fn put_off(&self, sandbox: &Sandbox, timeout_sec: u32) -> Result<(), ServiceError> {
        let timeout = Duration::from_secs(timeout_sec.into());
        let wanted = SystemTime::now().checked_add(timeout);
        let is_later = match (sandbox.info().expires_at, wanted) {
            (Some(end), Some(wanted)) => wanted > end,
            // It never ends.
            (None, _) | (_, None) => false,
        };
        if is_later {
            sandbox.set_ttl(Some(timeout)).await?;
            self.store.set_timeout(sandbox.id(), timeout_sec, now_ms()).await?;
        }
        Ok(())
    }
}
