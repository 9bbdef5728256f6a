//! How much disk is kept for snapshots.

use wrenn_core::TemplateName;

use crate::service::error::ServiceError;
use crate::service::sandboxes::Sandboxes;

impl Sandboxes {
    /// How much disk is kept for some snapshots and builds together, in bytes.
    ///
    /// # Errors
    /// Those of [`Host::stored_bytes`](wrenn_core::Host::stored_bytes).
    pub async fn template_bytes(&self, names: &[&str]) -> Result<u64, ServiceError> {
        let names: Vec<TemplateName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(self.host.stored_bytes(&[], &names).await?)
    }
}
