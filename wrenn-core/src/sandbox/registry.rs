//! The sandboxes of a site that this program runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::event::Events;
use crate::sandbox::shared::Shared;
use crate::site::Site;
use crate::state::SandboxInfo;

/// A site, and the sandboxes that this program runs on it. The registry keeps no sandbox alive.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) site: Arc<Site>,
    pub(crate) events: Events,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    sandboxes: HashMap<SandboxId, Weak<Shared>>,
    /// Whether the host was shut down, so that no sandbox starts any more.
    is_closed: bool,
}

impl Registry {
    pub(crate) fn new(site: Site) -> Self {
        Self { site: Arc::new(site), events: Events::default(), running: Mutex::default() }
    }

    /// The sandboxes that this program runs.
    pub(crate) fn all(&self) -> Vec<Arc<Shared>> {
        self.lock().sandboxes.values().filter_map(Weak::upgrade).collect()
    }

    /// The properties of the sandboxes that this program runs.
    pub(crate) fn infos(&self) -> Vec<SandboxInfo> {
        self.all().iter().map(|shared| shared.info()).collect()
    }

    pub(crate) fn find(&self, id: &SandboxId) -> Option<Arc<Shared>> {
        self.lock().sandboxes.get(id).and_then(Weak::upgrade)
    }

    /// Refuses every start from now on.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
    }

    /// Refuses to start anything once the host was shut down.
    pub(super) fn check_open(&self) -> Result<()> {
        if self.lock().is_closed { Err(shut_down()) } else { Ok(()) }
    }

    pub(super) fn enrol(&self, shared: &Arc<Shared>) -> Result<()> {
        let mut running = self.lock();
        if running.is_closed {
            return Err(shut_down());
        }
        running.sandboxes.retain(|_, shared| shared.strong_count() > 0);
        running.sandboxes.insert(shared.fixed.id.clone(), Arc::downgrade(shared));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shut_down() -> Error {
    Error::Host {
        problem: "this host was shut down".to_owned(),
        remedy: "open the data directory again with `Host::open`".to_owned(),
        source: None,
    }
}
