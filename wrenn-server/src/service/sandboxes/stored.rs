//! How much disk is kept for a key, and for its snapshots.

use tokio::sync::OwnedMutexGuard;
use wrenn_core::{Host, SandboxId, TemplateName};

use crate::service::error::ServiceError;
use crate::service::sandboxes::Sandboxes;
use crate::store::contract::Store;
use crate::store::records::{By, Order, Page, Status};

/// Leave to store something for an owner. While it is there, whoever else wants to store something for the same owner
/// waits: what is under way is counted before the next one is decided on.
#[derive(Debug)]
pub(super) struct Room {
    /// `None` where nothing is limited, and so nobody waits.
    _turn: Option<OwnedMutexGuard<()>>,
}

/// How much disk is kept for an owner's paused sandboxes, checkpoints, snapshots and builds, in bytes; without the template
/// of the name `except`, if there is one.
///
/// # Errors
/// [`ServiceError::Store`], and those of [`Host::stored_bytes`].
pub async fn stored_bytes(
    host: &Host,
    store: &dyn Store,
    owner: &str,
    except: Option<&str>,
) -> Result<u64, ServiceError> {
    let statuses = &[Status::Running, Status::Paused];
    let all = Page { owner, statuses, by: By::Created, order: Order::OldestFirst, after: None, len_max: u32::MAX };
    let sandboxes: Vec<SandboxId> = store.page(&all).await?.into_iter().map(|record| record.id).collect();
    let own = store.snapshots().await?.into_iter();
    let own = own.filter(|record| record.owner == owner && Some(record.name.as_str()) != except);
    let names: Vec<TemplateName> = own.filter_map(|record| record.name.parse().ok()).collect();
    Ok(host.stored_bytes(&sandboxes, &names).await?)
}

impl Sandboxes {
    /// How much disk is kept for some snapshots and builds together, in bytes.
    ///
    /// # Errors
    /// Those of [`Host::stored_bytes`].
    pub async fn template_bytes(&self, names: &[&str]) -> Result<u64, ServiceError> {
        let names: Vec<TemplateName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(self.host.stored_bytes(&[], &names).await?)
    }

    /// Refuses what may come to store more for an owner, once its limit is reached.
    ///
    /// # Errors
    /// [`ServiceError::StoredLimit`], [`ServiceError::Store`], and those of [`Host::stored_bytes`].
    pub(super) async fn check_stored(&self, owner: &str) -> Result<(), ServiceError> {
        match self.stored_mib_max(owner).await? {
            Some(max_mib) => self.check_below(owner, max_mib, None).await,
            None => Ok(()),
        }
    }

    /// Waits until nothing else is being stored for an owner that has a limit, and refuses once that is reached.
    ///
    /// # Errors
    /// As [`check_stored`](Self::check_stored).
    pub(super) async fn room_to_store(&self, owner: &str) -> Result<Room, ServiceError> {
        let room = self.turn_to_store(owner).await?;
        self.check_stored(owner).await.map(|()| room)
    }

    /// Removes a template of the owner's, which was stored without [room](Self::room_to_store), if the limit was reached by what
    /// was stored meanwhile.
    ///
    /// # Errors
    /// As [`check_stored`](Self::check_stored), and then the template is gone; and those of its removal.
    pub(super) async fn keep_if_there_is_room(&self, owner: &str, template: &str) -> Result<(), ServiceError> {
        let Some(max_mib) = self.stored_mib_max(owner).await? else { return Ok(()) };
        // Of several that end together, the next one does not count what this one has removed.
        let _room = self.turn_to_store(owner).await?;
        let checked = self.check_below(owner, max_mib, Some(template)).await;
        if let Err(ServiceError::StoredLimit { .. }) = checked {
            self.drop_template(owner, template).await?;
        }
        checked
    }

    async fn turn_to_store(&self, owner: &str) -> Result<Room, ServiceError> {
        let turn = match self.stored_mib_max(owner).await? {
            Some(_) => Some(self.lock_named(format!("stored:{owner}")).lock_owned().await),
            None => None,
        };
        Ok(Room { _turn: turn })
    }

    async fn check_below(&self, owner: &str, max_mib: u64, except: Option<&str>) -> Result<(), ServiceError> {
        let used_mib = stored_bytes(&self.host, &*self.store, owner, except).await? >> 20;
        if used_mib < max_mib {
            return Ok(());
        }
        self.meters.refused("stored");
        Err(ServiceError::StoredLimit { used_mib, max_mib })
    }

    async fn stored_mib_max(&self, owner: &str) -> Result<Option<u64>, ServiceError> {
        Ok(self.terms(owner).await?.stored_mib_max)
    }
}
