//! The sandboxes of a site that this program runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::id::SandboxId;
use crate::sandbox::shared::Shared;
use crate::site::Site;
use crate::state::SandboxInfo;

/// A site, and who runs on it here. It keeps no sandbox alive.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) site: Arc<Site>,
    running: Mutex<HashMap<SandboxId, Weak<Shared>>>,
}

impl Registry {
    pub(crate) fn new(site: Site) -> Self {
        Self { site: Arc::new(site), running: Mutex::default() }
    }

    /// What runs here, and what is known of it.
    pub(crate) fn infos(&self) -> Vec<SandboxInfo> {
        let running: Vec<Arc<Shared>> = self.lock().values().filter_map(Weak::upgrade).collect();
        running.iter().map(|shared| shared.info()).collect()
    }

    pub(crate) fn find(&self, id: &SandboxId) -> Option<Arc<Shared>> {
        self.lock().get(id).and_then(Weak::upgrade)
    }

    pub(super) fn enrol(&self, shared: &Arc<Shared>) {
        let mut running = self.lock();
        running.retain(|_, shared| shared.strong_count() > 0);
        running.insert(shared.fixed.id.clone(), Arc::downgrade(shared));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Weak<Shared>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
