//! How much disk is kept for a key, and for its snapshots.

use wrenn_core::{SandboxId, TemplateName};

use crate::service::error::ServiceError;
use crate::service::sandboxes::Sandboxes;
use crate::store::records::{By, Order, Page, Status};

impl Sandboxes {
    /// How much disk is kept for some snapshots and builds together, in bytes.
    ///
    /// # Errors
    /// Those of [`Host::stored_bytes`](wrenn_core::Host::stored_bytes).
    pub async fn template_bytes(&self, names: &[&str]) -> Result<u64, ServiceError> {
        let names: Vec<TemplateName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(self.host.stored_bytes(&[], &names).await?)
    }

    /// Refuses what stores more for an owner, once its limit is reached. What is under way at that time may go beyond it.
    ///
    /// # Errors
    /// [`ServiceError::StoredLimit`], [`ServiceError::Store`], and those of
    /// [`Host::stored_bytes`](wrenn_core::Host::stored_bytes).
    pub(super) async fn check_stored(&self, owner: &str) -> Result<(), ServiceError> {
        let Some(max_mib) = self.terms(owner).await?.stored_mib_max else { return Ok(()) };
        let used_mib = self.stored_bytes(owner).await? >> 20;
        if used_mib < max_mib {
            return Ok(());
        }
        self.meters.refused("stored");
        Err(ServiceError::StoredLimit { used_mib, max_mib })
    }

    /// How much disk is kept for an owner's paused sandboxes, checkpoints, snapshots and builds, in bytes.
    async fn stored_bytes(&self, owner: &str) -> Result<u64, ServiceError> {
        let statuses = &[Status::Running, Status::Paused];
        let all = Page { owner, statuses, by: By::Created, order: Order::OldestFirst, after: None, len_max: u32::MAX };
        let sandboxes: Vec<SandboxId> = self.store.page(&all).await?.into_iter().map(|record| record.id).collect();
        let own = self.store.snapshots().await?.into_iter().filter(|record| record.owner == owner);
        let names: Vec<TemplateName> = own.filter_map(|record| record.name.parse().ok()).collect();
        Ok(self.host.stored_bytes(&sandboxes, &names).await?)
    }
}
