//! The connections of one guest: those that are being made, and those that are open.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use crate::egress::budget::{Budget, OF_A_CONNECTION, Share};
use crate::egress::dial::Made;
use crate::egress::shared::Route;
use crate::packet::Syn;

/// A guest's connection, by its port and the address that it wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) port: u16,
    pub(super) to: SocketAddr,
}

/// A connection of a guest's that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenConnection {
    /// The guest's port.
    pub guest_port: u16,
    /// What it is connected to, as the guest sees it.
    pub to: SocketAddr,
}

/// What is known of a connection before the guest has it.
#[derive(Debug)]
pub(super) enum Begun {
    Dialling,
    /// To be joined with what the listener accepts.
    Dialled(Made),
    /// It has to tell a name first.
    Named,
    /// It is for DNS.
    Questions,
}

/// A connection that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) to: SocketAddr,
    /// The name by which it was allowed.
    pub(super) name: Option<String>,
    /// Where it leads, if that is not where the guest had in mind, and it was allowed by that address.
    pub(super) led_to: Option<SocketAddr>,
    /// By which way out it was made.
    pub(super) route: Route,
    pub(super) abort: AbortHandle,
    pub(super) _share: Share,
}

#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    begun: HashMap<Pair, Beginning>,
    open: HashMap<Pair, Open>,
}

#[derive(Debug)]
struct Beginning {
    begun: Begun,
    /// Of a connection that was handed over.
    syn: Option<Syn>,
    at: Instant,
    share: Share,
}

/// What to do with a SYN.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Begin a connection.
    Begin,
    /// Nothing: that is under way.
    Wait,
    /// The guest has as many as it may have.
    Full,
}

impl Connections {
    /// Notes that a connection is begun, unless that is so already, or there are `most`.
    pub(super) fn begin(&self, pair: Pair, most: usize, budget: &Budget) -> Next {
        let mut state = self.lock();
        if state.begun.contains_key(&pair) {
            return Next::Wait;
        }
        if state.begun.len() + state.open.len() >= most {
            return Next::Full;
        }
        let Some(share) = budget.take(OF_A_CONNECTION) else { return Next::Full };
        state.begun.insert(pair, Beginning { begun: Begun::Dialling, syn: None, at: Instant::now(), share });
        Next::Begin
    }

    /// Notes how a connection that was begun goes on once the listener has accepted it.
    pub(super) fn hand_over(&self, pair: Pair, begun: Begun, syn: Syn) {
        if let Some(beginning) = self.lock().begun.get_mut(&pair) {
            (beginning.begun, beginning.syn, beginning.at) = (begun, Some(syn), Instant::now());
        }
    }

    /// The SYN of a connection that was handed over and not accepted: the guest has sent it once more, so it was lost.
    pub(super) fn lost(&self, pair: Pair) -> Option<Syn> {
        self.lock().begun.get(&pair).and_then(|beginning| beginning.syn.clone())
    }

    pub(super) fn give_up(&self, pair: Pair) {
        self.lock().begun.remove(&pair);
    }

    /// Takes what was begun, for a connection that was accepted.
    pub(super) fn accepted(&self, pair: Pair) -> Option<(Begun, Share)> {
        self.lock().begun.remove(&pair).map(|beginning| (beginning.begun, beginning.share))
    }

    /// Notes a connection as open before it is carried, so that no change of the policy passes it by. `begin` carries it.
    pub(super) fn opened(&self, pair: Pair, begin: impl FnOnce() -> Open) {
        let mut state = self.lock();
        let open = begin();
        // The guest uses the port anew: what was open by it is closing.
        if let Some(old) = state.open.insert(pair, open) {
            old.abort.abort();
        }
    }

    /// Notes the name by which an open connection was allowed.
    pub(super) fn named(&self, pair: Pair, name: String) {
        if let Some(open) = self.lock().open.get_mut(&pair) {
            open.name = Some(name);
        }
    }

    /// Notes where an open connection leads that a guest wanted to another address.
    pub(super) fn led(&self, pair: Pair, to: SocketAddr) {
        if let Some(open) = self.lock().open.get_mut(&pair) {
            open.led_to = Some(to);
        }
    }

    pub(super) fn closed(&self, pair: Pair, id: tokio::task::Id) {
        let mut state = self.lock();
        if state.open.get(&pair).is_some_and(|open| open.abort.id() == id) {
            state.open.remove(&pair);
        }
    }

    pub(super) fn open(&self) -> Vec<OpenConnection> {
        self.lock().open.keys().map(|pair| OpenConnection { guest_port: pair.port, to: pair.to }).collect()
    }

    pub(super) fn open_count(&self) -> usize {
        self.lock().open.len()
    }

    /// Closes each open connection that `may_stay` does not want. What is begun is looked at when it opens.
    pub(super) fn sift(&self, may_stay: impl Fn(&Open) -> bool) {
        self.lock().open.retain(|_, open| {
            let stays = may_stay(open);
            if !stays {
                open.abort.abort();
            }
            stays
        });
    }

    /// Forgets what was handed over and never accepted.
    pub(super) fn sweep(&self) {
        let is_fresh = |at: &Instant| at.elapsed() < HANDED_OVER_MAX;
        self.lock().begun.retain(|_, it| matches!(it.begun, Begun::Dialling) || is_fresh(&it.at));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A SYN goes through the loopback in microseconds; the guest answers the listener when it comes to run.
const HANDED_OVER_MAX: Duration = Duration::from_secs(60);
