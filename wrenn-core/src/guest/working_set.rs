//! What a restore touched, kept for the next one of the same generation.

use std::path::PathBuf;
use std::sync::Arc;

use wrenn_snapshot::{GenerationId, WorkingSet};

use crate::guest::Guest;
use crate::site::Site;

impl Guest {
    /// Keeps what the guest touched for the next restore of the same generation, which nobody kept before.
    pub(crate) fn keep_working_set(&self, site: &Arc<Site>) {
        let Some(from) = &self.restored_from else { return };
        let path = working_set_path(site, *from);
        let Some(touched) = self.machine.working_set().filter(|touched| !touched.is_empty() && !path.exists()) else {
            return;
        };
        if let Err(error) = touched.store(&path) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the working set was not kept");
        }
    }

    /// What was touched after one restore is what will be touched after the next, of the same guest a little later.
    pub(super) fn hand_on_working_set(&self, site: &Arc<Site>, to: GenerationId) {
        self.keep_working_set(site);
        let Some(touched) = self.restored_from.and_then(|from| of(site, from)) else { return };
        if let Err(error) = touched.store(&working_set_path(site, to)) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the working set was not handed on");
        }
    }
}

/// Beside the files of its generation, and gone with them.
fn working_set_path(site: &Arc<Site>, generation: GenerationId) -> PathBuf {
    site.store.root().join(generation.to_string()).join("working-set")
}

/// It is a hint: without it, or with a damaged one, pages come in as they are touched.
pub(crate) fn of(site: &Arc<Site>, generation: GenerationId) -> Option<WorkingSet> {
    WorkingSet::load(&working_set_path(site, generation)).unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the working set is not used");
        None
    })
}
