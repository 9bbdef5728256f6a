//! One inotify instance for all watches: the kernel gives a user few of them.
//!
//! ```text
//!  kernel's queue -> read -> Hub::dispatch -> an Inbox for each watch that a directory belongs to
//! ```
//!
//! Two watches of one directory have one watch of the kernel's between them, which goes with the last of the two. None is
//! removed while any is being added: what the kernel answers an addition with would be gone before it is known whose it is.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InotifyEvent, WatchDescriptor};
use tokio::{sync::oneshot, time::sleep};

use super::{
    inbox::{Inbox, Room},
    sys::{Incoming, Instance},
};
use crate::agent::disk::cleanup;

/// The hub of those watches that there are.
#[derive(Debug, Default)]
pub(super) struct Hubs(Mutex<Weak<Hub>>);

impl Hubs {
    /// The hub, which is made for the first watch, and goes with the last one.
    pub(super) fn current(&self) -> std::io::Result<Arc<Hub>> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hub) = current.upgrade() {
            return Ok(hub);
        }
        let instance = Instance::new()?;
        let incoming = Incoming::register(instance.clone())?;
        let (alive, is_over) = oneshot::channel();
        let hub = Arc::new(Hub { instance, state: Mutex::default(), room: Arc::default(), _alive: alive });
        *current = Arc::downgrade(&hub);
        tokio::spawn(read(incoming, current.clone(), is_over));
        Ok(hub)
    }
}

#[derive(Debug)]
pub(super) struct Hub {
    instance: Arc<Instance>,
    state: Mutex<State>,
    room: Arc<Room>,
    /// The reading ends when this is dropped.
    _alive: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    last: Id,
    watches: HashMap<Id, Member>,
    /// Whose directories they are. One that the kernel has removed may be here for a little longer.
    owners: HashMap<WatchDescriptor, Vec<Id>>,
    /// How many directories are being added at the moment.
    adding: usize,
    /// What nobody owns any more, until nothing is being added.
    unowned: Vec<WatchDescriptor>,
}

type Id = u64;

#[derive(Debug)]
struct Member {
    inbox: Arc<Inbox>,
    /// What comes while it adds a directory may be of that one.
    is_adding: bool,
}

impl Hub {
    /// Another watch, with no directory yet; `None` when there are too many.
    pub(super) fn join(self: &Arc<Self>) -> Option<Membership> {
        let mut state = self.state();
        if state.watches.len() >= WATCHES_MAX {
            return None;
        }
        state.last += 1;
        let (id, inbox) = (state.last, Arc::new(Inbox::new(self.room.clone())));
        state.watches.insert(id, Member { inbox: inbox.clone(), is_adding: false });
        drop(state);
        Some(Membership { hub: self.clone(), id, inbox })
    }

    fn dispatch(&self, events: Vec<InotifyEvent>) {
        let mut state = self.state();
        for event in events.into_iter().map(Arc::new) {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                state.watches.values().for_each(|member| member.inbox.lose());
                continue;
            }
            let owners = state.owners.get(&event.wd).map_or(&[][..], Vec::as_slice);
            let own = owners.iter().filter_map(|id| state.watches.get(id));
            let others = state.watches.iter().filter(|(id, member)| member.is_adding && !owners.contains(id));
            for member in own.chain(others.map(|(_, member)| member)) {
                member.inbox.push(event.clone());
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                state.owners.remove(&event.wd);
            }
        }
    }

    fn lose(&self) {
        self.state().watches.values().for_each(|member| member.inbox.lose());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes what nobody owns, unless something is being added.
    fn sweep(&mut self, instance: &Instance) {
        if self.adding > 0 {
            return;
        }
        for wd in std::mem::take(&mut self.unowned) {
            if !self.owners.contains_key(&wd) {
                // It fails for a directory that is gone, whose watch is gone already.
                let _ = instance.inner().rm_watch(wd);
            }
        }
    }

    fn disown(&mut self, wd: WatchDescriptor, id: Id) {
        let Some(owners) = self.owners.get_mut(&wd) else { return };
        owners.retain(|owner| *owner != id);
        if owners.is_empty() {
            self.owners.remove(&wd);
            self.unowned.push(wd);
        }
    }
}

/// A watch's part in the hub; all its directories go with it.
#[derive(Debug)]
pub(super) struct Membership {
    hub: Arc<Hub>,
    id: Id,
    pub(super) inbox: Arc<Inbox>,
}

impl Membership {
    /// Adds a directory, as far as the thread's user may read it. It is told of from here on.
    pub(super) fn add(&self, directory: &Path, flags: AddWatchFlags) -> nix::Result<WatchDescriptor> {
        self.set_adding(true);
        // Without the lock: a file system may take its time for it.
        let added = self.hub.instance.inner().add_watch(directory, flags);
        let mut state = self.hub.state();
        if let Ok(wd) = added {
            let owners = state.owners.entry(wd).or_default();
            if !owners.contains(&self.id) {
                owners.push(self.id);
            }
        }
        drop(state);
        self.set_adding(false);
        added
    }

    /// Gives directories up.
    pub(super) fn remove(&self, directories: impl IntoIterator<Item = WatchDescriptor>) {
        let mut state = self.hub.state();
        for wd in directories {
            state.disown(wd, self.id);
        }
        state.sweep(&self.hub.instance);
    }

    fn set_adding(&self, is_adding: bool) {
        let mut state = self.hub.state();
        state.adding = if is_adding { state.adding + 1 } else { state.adding - 1 };
        if let Some(member) = state.watches.get_mut(&self.id) {
            member.is_adding = is_adding;
        }
        state.sweep(&self.hub.instance);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let (hub, id) = (self.hub.clone(), self.id);
        // There may be very many directories.
        cleanup::hand_over(move || {
            let mut state = hub.state();
            state.watches.remove(&id);
            let own = state.owners.iter().filter(|(_, owners)| owners.contains(&id)).map(|(wd, _)| *wd);
            for wd in own.collect::<Vec<_>>() {
                state.disown(wd, id);
            }
            state.sweep(&hub.instance);
        });
    }
}

async fn read(incoming: Incoming, hub: Weak<Hub>, mut is_over: oneshot::Receiver<()>) {
    loop {
        let events = tokio::select! {
            events = incoming.read() => events,
            _ = &mut is_over => return,
        };
        let Some(hub) = hub.upgrade() else { return };
        match events {
            Ok(events) => hub.dispatch(events),
            Err(_) => {
                hub.lose();
                drop(hub);
                sleep(READ_AGAIN).await;
            }
        }
    }
}

/// Clients are few; what one forgets is removed after a while.
const WATCHES_MAX: usize = 1024;

/// The kernel has no reason to fail; should it, it is asked again at leisure.
const READ_AGAIN: Duration = Duration::from_millis(100);
