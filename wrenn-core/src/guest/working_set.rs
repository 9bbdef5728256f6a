//! The working set: the pages that a restored guest touched, kept for the next restore of the same generation.

use std::path::PathBuf;
use std::sync::Arc;

use wrenn_snapshot::{GenerationId, WorkingSet};

use crate::guest::Guest;
use crate::runtime::blocking;
use crate::site::Site;

impl Guest {
    /// Keeps the guest's working set for the next restore of the same generation, where none was kept before. It is
    /// written in the background, so that the end of a guest does not wait for it.
    pub(crate) fn keep_working_set(&self, site: &Arc<Site>) {
        let (Some(from), Some(touched)) = (self.restored_from, self.touched()) else { return };
        let site = Arc::clone(site);
        tokio::task::spawn_blocking(move || keep(&site, from, &touched));
    }

    /// Hands the working set on to the guest's next generation, since the next restore will touch much the same pages.
    pub(super) async fn hand_on_working_set(&self, site: &Arc<Site>, to: GenerationId) {
        let Some(from) = self.restored_from else { return };
        let (site, touched) = (Arc::clone(site), self.touched());
        let hand_on = move || {
            if let Some(touched) = touched {
                keep(&site, from, &touched);
            }
            let Some(touched) = of(&site, from) else { return };
            if let Err(error) = touched.store(&working_set_path(&site, to)) {
                tracing::debug!(error = &error as &dyn std::error::Error, "the working set was not handed on");
            }
        };
        // A join fails only where the task panicked, and the panic was printed.
        let _ = blocking("hand the working set on", hand_on).await;
    }

    fn touched(&self) -> Option<WorkingSet> {
        self.machine.working_set().filter(|touched| !touched.is_empty())
    }
}

fn keep(site: &Arc<Site>, from: GenerationId, touched: &WorkingSet) {
    let path = working_set_path(site, from);
    if path.exists() {
        return;
    }
    if let Err(error) = touched.store(&path) {
        tracing::debug!(error = &error as &dyn std::error::Error, "the working set was not kept");
    }
}

/// The file lies in the directory of its generation, and is removed with it.
fn working_set_path(site: &Arc<Site>, generation: GenerationId) -> PathBuf {
    site.store.root().join(generation.to_string()).join("working-set")
}

/// The working set of a generation, if one is kept. It is a hint: without one, or with a damaged one, each page is read
/// when it is touched.
pub(crate) fn of(site: &Arc<Site>, generation: GenerationId) -> Option<WorkingSet> {
    WorkingSet::load(&working_set_path(site, generation)).unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "the working set is not used");
        None
    })
}
