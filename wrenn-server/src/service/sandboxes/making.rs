//! Sandboxes are made: of a template, of another sandbox, and templates of them.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument as _;
use wrenn_core::{OnExpiry, Sandbox, Template, TtlFrom};

use crate::service::admission::Share;
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::events::EventKind;
use crate::service::meters::Work;
use crate::service::sandboxes::{Found, Sandboxes, Wanted, lock};
use crate::service::templates::Former;
use crate::service::{network, templates};
use crate::store::records::{Asked, SandboxRecord, Status, TimeoutFrom};

/// A client's own name for a request, by which it may send it twice.
#[derive(Debug, Clone)]
pub struct Once {
    /// The name.
    pub key: String,
    /// The SHA-256 of the request's body.
    pub digest: Vec<u8>,
}

impl Sandboxes {
    /// Makes a sandbox. With `once` it is the one that the same request has made before, if there is one.
    ///
    /// # Errors
    /// As [`SandboxBuilder::create`](wrenn_core::SandboxBuilder::create); those of the key's limits, [`ServiceError::StoredLimit`]
    /// too, and of the room that there is; those of a request that was sent before; [`ServiceError::Store`], and then it is gone again.
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn create(
        self: &Arc<Self>,
        owner: &str,
        wanted: Wanted,
        once: Option<Once>,
    ) -> Result<Found, ServiceError> {
        self.take_nothing_more_while_closing()?;
        let (this, owner) = (Arc::clone(self), owner.to_owned());
        let work = async move {
            let Some(Once { key, digest }) = once else { return this.make(&owner, wanted).await };
            if let Some(made) = this.begin(&owner, &key, &digest).await? {
                return Ok(made);
            }
            let made = this.make(&owner, wanted).await;
            let sandbox = made.as_ref().ok().map(|found| &found.record.id);
            let ended = this.store.end_request(&owner, &key, sandbox).await;
            lock(&this.requests).remove(&(owner, key));
            ended?;
            made
        };
        tokio::spawn(work.in_current_span()).await?
    }

    /// Notes that a request has begun, or gives what it has made before.
    async fn begin(&self, owner: &str, key: &str, digest: &[u8]) -> Result<Option<Found>, ServiceError> {
        let name = (owner.to_owned(), key.to_owned());
        if !lock(&self.requests).insert(name.clone()) {
            return Err(ServiceError::RequestUnderWay);
        }
        let before = self.store.begin_request(owner, key, digest, now_ms()).await;
        if !matches!(before, Ok(None)) {
            lock(&self.requests).remove(&name);
        }
        match before? {
            None => Ok(None),
            Some(before) if before.digest != digest => Err(ServiceError::RequestMismatch),
            Some(before) => match before.sandbox {
                Some(id) => self.find(owner, id.as_str()).await.map(Some),
                None => Err(ServiceError::RequestUnknown),
            },
        }
    }

    async fn make(self: &Arc<Self>, owner: &str, wanted: Wanted) -> Result<Found, ServiceError> {
        self.meters.time(Work::Create, self.make_now(owner, wanted)).await
    }

    async fn make_now(self: &Arc<Self>, owner: &str, wanted: Wanted) -> Result<Found, ServiceError> {
        let template = templates::resolve(&*self.store, owner, &wanted.template).await?;
        let shape = templates::shape(&self.host, &*self.store, owner, &template).await?;
        let (vcpus, memory_mib) = (wanted.vcpus.unwrap_or(shape.vcpus), wanted.memory_mib.unwrap_or(shape.memory_mib));
        let policy = network::policy(&wanted.asked.network)?;
        self.check_stored(owner).await?;
        let share = self.admission.admit(owner, &self.terms(owner).await?, vcpus, memory_mib).await?;
        let mut builder = Sandbox::builder(&self.host, &template)
            .ttl(Duration::from_secs(wanted.timeout_sec.into()))
            .ttl_from(match wanted.asked.timeout_from {
                TimeoutFrom::LastUse => TtlFrom::LastUse,
                TimeoutFrom::Start => TtlFrom::Start,
            })
            .on_expiry(if wanted.pauses_at_timeout { OnExpiry::Pause } else { OnExpiry::Kill })
            .network(policy);
        if let Some(vcpus) = wanted.vcpus {
            builder = builder.vcpus(vcpus);
        }
        if let Some(memory_mib) = wanted.memory_mib {
            builder = builder.memory_mib(memory_mib);
        }
        builder = wanted.envs.into_iter().fold(builder, |builder, (name, value)| builder.env(name, value));
        let sandbox = builder.create().await?;
        let timeout = (wanted.timeout_sec, wanted.pauses_at_timeout);
        let asked = Asked { disk_mib: shape.disk_mib, built_as: shape.built_as, ..wanted.asked };
        self.add(sandbox, owner, timeout, asked, share).await
    }

    /// Forks one that runs: each child, or why there is none. With a `timeout_sec` the children have that one.
    ///
    /// # Errors
    /// As [`running`](Self::running) and [`Sandbox::fork`]; and [`ServiceError::StoredLimit`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn fork(
        self: &Arc<Self>,
        owner: &str,
        id: &str,
        count: usize,
        timeout_sec: Option<u32>,
    ) -> Result<Vec<Result<Found, ServiceError>>, ServiceError> {
        self.take_nothing_more_while_closing()?;
        let record = self.record(owner, id).await?;
        let sandbox = self.running(owner, id, "be forked").await?;
        self.check_stored(owner).await?;
        let this = Arc::clone(self);
        let work = async move {
            let terms = this.terms(&record.owner).await?;
            let (mut shares, mut refused) = (Vec::with_capacity(count), Vec::new());
            for _ in 0..count {
                match this.admission.admit(&record.owner, &terms, record.vcpus, record.memory_mib).await {
                    Ok(share) => shares.push(share),
                    // The next one would wait as long, for the same room.
                    Err(error @ ServiceError::Full { waited }) => {
                        refused.push(Err(error));
                        let rest = count - shares.len() - refused.len();
                        refused.extend((0..rest).map(|_| Err(ServiceError::Full { waited })));
                        break;
                    }
                    Err(error) => refused.push(Err(error)),
                }
            }
            let mut children = Vec::with_capacity(count);
            let seconds = timeout_sec.unwrap_or(record.timeout_sec);
            let timeout = (seconds, record.pauses_at_timeout);
            // Where there is room for none, none is tried.
            let forked = match shares.len() {
                0 => Vec::new(),
                len => this.meters.time(Work::Fork, async { Ok(sandbox.fork(len).await?) }).await?,
            };
            for (child, share) in forked.into_iter().zip(shares) {
                children.push(match child {
                    Ok(child) => {
                        // It fails where the child has ended, which its record tells.
                        child.set_ttl(Some(Duration::from_secs(seconds.into()))).await.ok();
                        this.add(child, &record.owner, timeout, record.asked.clone(), share).await
                    }
                    Err(error) => Err(error.into()),
                });
            }
            children.extend(refused);
            Ok(children)
        };
        tokio::spawn(work.in_current_span()).await?
    }

    /// Makes a template of one that runs, of a name that nobody has, or that a snapshot of the same key may have.
    ///
    /// # Errors
    /// As [`running`](Self::running), [`Sandbox::snapshot`] and [`Sandbox::replace_snapshot`]; and
    /// [`ServiceError::StoredLimit`].
    ///
    /// # Cancel-Safety
    /// It goes on.
    pub async fn snapshot(
        self: &Arc<Self>,
        owner: &str,
        id: &str,
        name: String,
        former: Former,
    ) -> Result<Template, ServiceError> {
        let record = self.record(owner, id).await?;
        let sandbox = self.running(owner, id, "be snapshotted").await?;
        let this = Arc::clone(self);
        let work = async move {
            let _room = this.room_to_store(&record.owner).await?;
            let locked = this.lock_of_snapshot(&name);
            let _change = locked.lock().await;
            let making = templates::snapshot(&this.host, &*this.store, &sandbox, &record, name, former);
            let made = this.meters.time(Work::Snapshot, making).await?;
            this.events.note(&record, EventKind::Checkpointed, Some(made.name().as_str())).await;
            Ok(made)
        };
        tokio::spawn(work.in_current_span()).await?
    }

    /// Adds the record of one that runs, whose time-out in seconds and what becomes of it then are `timeout`.
    async fn add(
        self: &Arc<Self>,
        sandbox: Sandbox,
        owner: &str,
        (timeout_sec, pauses_at_timeout): (u32, bool),
        asked: Asked,
        share: Share,
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
            asked,
        };
        if let Err(error) = self.store.add_sandbox(&record).await {
            // Nobody could find it.
            sandbox.kill().await?;
            return Err(error.into());
        }
        self.events.note(&record, EventKind::Created, None).await;
        self.keep(sandbox, record.clone(), share);
        Ok(self.found(record))
    }
}
