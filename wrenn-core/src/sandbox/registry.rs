//! The sandboxes of a site that this program runs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures::future::BoxFuture;

use crate::error::{Error, Result};
use crate::id::SandboxId;
use crate::sandbox::event::Events;
use crate::sandbox::shared::Shared;
use crate::sandbox::sleepers::Sleepers;
use crate::sandbox::turns::Turns;
use crate::site::Site;
use crate::state::SandboxInfo;

/// A site, and the sandboxes that this program runs on it. The registry keeps no sandbox alive but those that a connection
/// has woken.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) site: Arc<Site>,
    pub(crate) events: Events,
    pub(crate) sleepers: Arc<Sleepers>,
    pub(super) turns: Turns,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    sandboxes: HashMap<SandboxId, Weak<Shared>>,
    /// Whether the host was shut down, so that no sandbox starts any more.
    is_closed: bool,
}

/// What a sandbox's task has of its host, which it does not keep.
#[derive(Debug)]
pub(super) struct Premises {
    pub(super) site: Arc<Site>,
    pub(super) events: Events,
    pub(super) sleepers: Weak<Sleepers>,
}

/// Resumes a sandbox of a registry. It is given to the registry, since a resume uses this file.
pub(crate) type Resume = fn(Weak<Registry>, SandboxId) -> BoxFuture<'static, Result<Arc<Shared>>>;

impl Registry {
    pub(crate) fn new(site: Site, turns: Turns, resume: Resume) -> Arc<Self> {
        let (site, events) = (Arc::new(site), Events::default());
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = Weak::clone(this);
            let sleepers = Sleepers::new(Arc::new(move |id| resume(Weak::clone(&this), id)), events.clone());
            Self { site, events, sleepers: Arc::new(sleepers), turns, running: Mutex::default() }
        })
    }

    pub(super) fn premises(&self) -> Premises {
        let (site, events) = (Arc::clone(&self.site), self.events.clone());
        Premises { site, events, sleepers: Arc::downgrade(&self.sleepers) }
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

    /// Refuses every start from now on, and ends the VMMs that stand by for one.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.site.standbys.close();
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
