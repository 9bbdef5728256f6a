//! The removal of images that were pulled for builds, and that nobody uses any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::service::builds::is_pulled;
use crate::service::error::ServiceError;
use crate::service::sandboxes::Sandboxes;

impl Sandboxes {
    /// Removes those that were not used for the time `unused`, each hour, until it is dropped.
    pub(super) async fn prune_images(self: Arc<Self>, unused: Duration) {
        let mut ticks = interval(PRUNED_EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.prune_pulled(unused).await {
                tracing::warn!(%error, "images that nobody uses were not removed");
            }
        }
    }

    async fn prune_pulled(&self, unused: Duration) -> Result<(), ServiceError> {
        // A pull takes its record for its own. While one goes on, the next hour will do.
        let Ok(_no_pull) = self.builds.pulling.try_write() else { return Ok(()) };
        let pruned = self.host.prune_unused_images(unused, |image| is_pulled(image.name())).await?;
        for name in pruned.images.iter().filter(|name| is_pulled(name)) {
            self.store.remove_snapshot(name).await?;
        }
        if pruned.bytes > 0 {
            let (images, layers) = (pruned.images.len(), pruned.layers.len());
            tracing::info!(images, layers, bytes = pruned.bytes, "removed images that nobody uses");
        }
        Ok(())
    }
}

const PRUNED_EACH: Duration = Duration::from_secs(3600);
