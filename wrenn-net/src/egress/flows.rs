//! What has no beginning and no end of its own: each has a socket of the host's, until it was idle for a while, or others
//! need its room.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::AbortHandle;

use crate::egress::budget::{Budget, OF_A_FLOW, Share};
use crate::policy::Refusal;

/// The flows of one guest, by what tells them apart.
#[derive(Debug)]
pub(super) struct Flows<K, S>(HashMap<K, Flow<S>>);

#[derive(Debug)]
struct Flow<S> {
    _share: Share,
    socket: Arc<S>,
    used: Instant,
    abort: AbortHandle,
}

impl<K, S> Default for Flows<K, S> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Copy + Eq + Hash, S> Flows<K, S> {
    /// The socket of a flow, which is used now.
    pub(super) fn used(&mut self, key: &K) -> Option<Arc<S>> {
        let flow = self.0.get_mut(key)?;
        flow.used = Instant::now();
        Some(Arc::clone(&flow.socket))
    }

    /// Adds a flow, whose answers are carried by the task of `abort`.
    pub(super) fn add(&mut self, key: K, socket: Arc<S>, share: Share, abort: AbortHandle) {
        self.0.insert(key, Flow { _share: share, socket, used: Instant::now(), abort });
    }

    /// Forgets a flow whose task has ended.
    pub(super) fn ended(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// What a new flow takes, unless it is refused. One that is used least recently makes room for it, where there are `most`.
    pub(super) fn room(&mut self, refusal: Option<Refusal>, most: usize, budget: &Budget) -> Result<Share, Refusal> {
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        self.make_room(most);
        budget.take(OF_A_FLOW).ok_or(Refusal::Limit)
    }

    fn make_room(&mut self, most: usize) {
        if self.0.len() < most {
            return;
        }
        let oldest = self.0.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| *key);
        if let Some(flow) = oldest.and_then(|key| self.0.remove(&key)) {
            flow.abort.abort();
        }
    }

    /// Ends each flow that `may_stay` does not want.
    pub(super) fn sift(&mut self, may_stay: impl Fn(&K) -> bool) {
        self.0.retain(|key, flow| {
            let stays = may_stay(key);
            if !stays {
                flow.abort.abort();
            }
            stays
        });
    }
}
