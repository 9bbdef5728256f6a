//! What is done for sandboxes that nobody asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::service::sandboxes::Sandboxes;

/// What is done beside the comparing of records, the measuring and the counting.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chores {
    /// How often what runs is kept on disk; `None` for never.
    pub checkpoint_each: Option<Duration>,
    /// Below how much memory of this machine that is left, in MiB, the idlest sandbox is paused; `None` for never.
    pub available_mib_min: Option<u64>,
    /// After how long without use an image that was pulled for builds is removed; `None` for never.
    pub image_unused: Option<Duration>,
}

impl Sandboxes {
    /// Does all of that, until what this returns is dropped.
    #[must_use]
    pub fn tend(self: &Arc<Self>, chores: Chores) -> JoinSet<()> {
        let mut all = JoinSet::new();
        all.spawn(Arc::clone(self).reconcile());
        all.spawn(Arc::clone(self).measure());
        all.spawn(Arc::clone(self).count());
        all.spawn(Arc::clone(self).tidy_files());
        if let Some(each) = chores.checkpoint_each {
            all.spawn(Arc::clone(self).checkpoint(each));
        }
        if let Some(mib) = chores.available_mib_min {
            all.spawn(Arc::clone(self).relieve(mib));
        }
        if let Some(unused) = chores.image_unused {
            all.spawn(Arc::clone(self).prune_images(unused));
        }
        all
    }
}
