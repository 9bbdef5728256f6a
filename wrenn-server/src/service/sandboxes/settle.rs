//! Records are brought up to what is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use wrenn_core::{Error, Exit, SandboxId, SandboxState};

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::events::EventKind;
use crate::service::sandboxes::{Sandboxes, lock};
use crate::store::records::{SandboxRecord, Status};

impl Sandboxes {
    /// Compares each record with what is, each half minute, until it is dropped.
    pub(super) async fn reconcile(self: Arc<Self>) {
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
            if let Err(error) = self.store.forget_before(now_ms() - KEPT_MS).await {
                tracing::warn!(%error, "old events were not removed");
            }
        }
    }

    /// Measures what runs, each quarter of a minute, until it is dropped.
    pub(super) async fn measure(self: Arc<Self>) {
        let mut ticks = interval(MEASURED_EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sandboxes: Vec<_> = lock(&self.running).values().map(|kept| kept.sandbox.clone()).collect();
            for sandbox in sandboxes {
                self.history.measure(&sandbox).await;
            }
        }
    }

    /// Writes into a record what is. `exit` is why the sandbox no longer runs, where no handle of it can tell, and `started`
    /// whether it has just begun to.
    pub(super) async fn settle(&self, id: &SandboxId, exit: Option<Exit>, started: bool) {
        let locked = self.lock_of(id);
        let _change = locked.lock().await;
        self.write(id, exit, started).await;
    }

    async fn settle_unless_changing(&self, id: &SandboxId) {
        let locked = self.lock_of(id);
        if let Ok(_change) = locked.try_lock()
            && !self.is_closing()
        {
            self.write(id, None, false).await;
        }
    }

    /// As [`settle`](Self::settle), for who has the sandbox's lock.
    pub(super) async fn write(&self, id: &SandboxId, exit: Option<Exit>, started: bool) {
        if let Err(error) = self.try_write(id, exit, started).await {
            // The next comparison writes it.
            tracing::warn!(%id, %error, "a sandbox's record was not brought up to date");
        }
    }

    async fn try_write(&self, id: &SandboxId, exit: Option<Exit>, started: bool) -> Result<(), ServiceError> {
        let Some(record) = self.store.sandbox(id).await? else { return Ok(()) };
        let (status, why) = self.status(&record, exit).await?;
        if status == record.status && !started {
            return Ok(());
        }
        self.store.set_status(id, status, why.as_deref(), started, now_ms()).await?;
        let kind = match status {
            Status::Running => EventKind::Resumed,
            Status::Paused => EventKind::Paused,
            Status::Stopped | Status::Error => {
                self.history.forget(id);
                EventKind::Killed
            }
        };
        self.events.note(&record, kind, why.as_deref()).await;
        Ok(())
    }

    async fn status(
        &self,
        record: &SandboxRecord,
        exit: Option<Exit>,
    ) -> Result<(Status, Option<String>), ServiceError> {
        let exit = match self.kept(&record.id) {
            Some(kept) if matches!(kept.sandbox.state(), SandboxState::Paused | SandboxState::Ended) => {
                lock(&self.running).remove(&record.id);
                self.credentials.forget(&record.id);
                self.changed.notify_waiters();
                // It is over, and says why at once.
                Some(kept.sandbox.wait().await)
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

const RECONCILED_EACH: Duration = Duration::from_secs(30);
const MEASURED_EACH: Duration = Duration::from_secs(15);
/// A week.
const KEPT_MS: i64 = 7 * 24 * 3600 * 1000;
