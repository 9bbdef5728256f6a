//! VMMs that are started before they are needed.
//!
//! ```text
//!  a guest starts ─▶ take ─▶ one that stands by, or none
//!        └─────────▶ started ─▶ next ─▶ make (in the background) ─▶ put
//!                                 └──▶ wait, and drop what nobody has wanted for a while
//! ```
//!
//! So many stand by for a kind of machine as were started in the last ten seconds, and for a minute after that while nobody
//! else wants the place. Each is used once, by a guest that is somebody's alone, so nothing gets from one to the next.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wrenn_net::Gate;

use crate::agent::connector::Connector;
use crate::error::Result;
use crate::vmm::machine::{Standby, Vmm};
use crate::vmm::paging::Paging;
use crate::vmm::parts::Parts;
use crate::vmm::shape::MachineShape;

/// What two machines have to have in common, so that a VMM that was started for the one can be the other's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) shape: MachineShape,
    pub(crate) image: String,
    pub(crate) base_digest: String,
    pub(crate) drive_bytes: u64,
}

/// What a guest is restored in.
pub(crate) struct Berth {
    pub(crate) connector: Arc<dyn Connector>,
    /// `None` for a fake.
    pub(crate) gate: Option<Gate>,
    pub(crate) drive: File,
    pub(crate) engine: Engine,
}

/// The VMM of a berth.
pub(crate) enum Engine {
    /// It is yet to be started.
    Parts(Box<Parts>),
    /// It has started.
    Ready(Box<dyn Standby>),
}

impl Engine {
    /// The VMM, started.
    pub(crate) async fn started(self, vmm: &dyn Vmm, shape: &MachineShape, paging: Paging) -> Result<Box<dyn Standby>> {
        match self {
            Self::Parts(parts) => vmm.stand_by(shape, *parts, paging).await,
            Self::Ready(standby) => Ok(standby),
        }
    }
}

/// The VMMs of a host that stand by.
pub(crate) struct Standbys {
    /// How many there may be.
    size: usize,
    state: Mutex<State>,
    /// Tells whoever tends them of a start, of the end of this, and of a host that is shut down.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<(Kind, Berth)>,
    demands: Vec<Demand>,
    is_tended: bool,
    is_closed: bool,
}

/// When machines of a kind were started, the last one last; never empty.
struct Demand {
    kind: Kind,
    starts: VecDeque<Instant>,
}

/// What is to be done for the VMMs that stand by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Make(Kind),
    /// There are enough for now.
    Wait(Duration),
    /// There are none any more, and none is wanted. Whoever tends them stops that.
    Over,
}

impl Standbys {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, state: Mutex::default(), changed: Arc::default() }
    }

    /// Whether any may stand by.
    pub(crate) fn are_wanted(&self) -> bool {
        self.size > 0
    }

    /// How many stand by now.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    pub(crate) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    /// Takes one that stands by.
    pub(crate) fn take(&self, kind: &Kind) -> Option<Berth> {
        let mut state = self.lock();
        loop {
            let at = state.ready.iter().position(|(ready, _)| ready == kind)?;
            let (_, berth) = state.ready.remove(at)?;
            if !berth.has_ended() {
                return Some(berth);
            }
        }
    }

    /// Notes the start of a machine. Whether somebody has to begin to tend what stands by.
    pub(crate) fn started(&self, kind: Kind) -> bool {
        if !self.are_wanted() {
            return false;
        }
        let mut state = self.lock();
        let now = Instant::now();
        match state.demands.iter_mut().find(|demand| demand.kind == kind) {
            Some(demand) => demand.starts.push_back(now),
            None => state.demands.push(Demand { kind, starts: VecDeque::from([now]) }),
        }
        self.changed.notify_one();
        !std::mem::replace(&mut state.is_tended, true)
    }

    /// What is to be done now. It drops what nobody has wanted for a while.
    pub(crate) fn next(&self) -> Next {
        self.next_at(Instant::now())
    }

    fn next_at(&self, now: Instant) -> Next {
        let mut state = self.lock();
        if state.is_closed {
            state.is_tended = false;
            return Next::Over;
        }
        state.forget(now, self.size);
        if state.demands.is_empty() {
            state.is_tended = false;
            return Next::Over;
        }
        let wanted = state.demands.iter().find(|demand| state.ready_of(&demand.kind) < demand.recent(now));
        let Some(kind) = wanted.map(|demand| demand.kind.clone()) else { return Next::Wait(LOOK) };
        if state.ready.len() < self.size || state.make_room(now) { Next::Make(kind) } else { Next::Wait(LOOK) }
    }

    /// Adds one that stands by from now on.
    pub(crate) fn put(&self, kind: Kind, berth: Berth) {
        let mut state = self.lock();
        if !state.is_closed {
            state.ready.push_back((kind, berth));
        }
    }

    /// Drops all of them. There are none from now on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.ready.clear();
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ready_of(&self, kind: &Kind) -> usize {
        self.ready.iter().filter(|(ready, _)| ready == kind).count()
    }

    /// Forgets starts of long ago, and what stands by for them.
    fn forget(&mut self, now: Instant, size: usize) {
        self.demands.retain_mut(|demand| {
            while demand.starts.len() > size {
                demand.starts.pop_front();
            }
            demand.starts.back().is_some_and(|last| now.saturating_duration_since(*last) < KEPT)
        });
        let demands = &self.demands;
        self.ready.retain(|(kind, berth)| demands.iter().any(|demand| demand.kind == *kind) && !berth.has_ended());
    }

    /// Drops one that nobody wants as much.
    fn make_room(&mut self, now: Instant) -> bool {
        let spare = self.demands.iter().find(|demand| self.ready_of(&demand.kind) > demand.recent(now));
        let Some(kind) = spare.map(|demand| demand.kind.clone()) else { return false };
        let at = self.ready.iter().position(|(ready, _)| *ready == kind);
        at.and_then(|at| self.ready.remove(at)).is_some()
    }
}

impl Demand {
    /// How many were started a moment ago.
    fn recent(&self, now: Instant) -> usize {
        self.starts.iter().filter(|start| now.saturating_duration_since(**start) < RECENT).count()
    }
}

impl Berth {
    fn has_ended(&self) -> bool {
        matches!(&self.engine, Engine::Ready(vmm) if vmm.has_ended())
    }
}

impl Drop for Standbys {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

impl fmt::Debug for Standbys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standbys").field("size", &self.size).field("ready", &self.ready()).finish_non_exhaustive()
    }
}

const RECENT: Duration = Duration::from_secs(10);
/// A VMM that stands by takes some 30 MiB, and is back within a tenth of a second where it is wanted again.
const KEPT: Duration = Duration::from_secs(60);
/// How long it takes until it is seen that one is not wanted any more, or has ended.
const LOOK: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::error::Error;
    use crate::vmm::machine::Machine;
    use crate::vmm::parts::Restore;
    use crate::vmm::shape::Acceleration;

    /// A fake: it is there, or it has ended.
    #[derive(Debug)]
    struct Fake {
        has_ended: bool,
    }

    #[async_trait]
    impl Standby for Fake {
        async fn restore(self: Box<Self>, _: Restore) -> Result<Box<dyn Machine>> {
            Err(Error::failed("restore")("a fake restores nothing".into()))
        }

        fn has_ended(&self) -> bool {
            self.has_ended
        }

        fn stood_by(&mut self) {}
    }

    struct Nowhere;

    impl Connector for Nowhere {
        fn connect(&self, _: u16) -> futures::future::BoxFuture<'_, std::io::Result<tokio::net::TcpStream>> {
            Box::pin(async { Err(std::io::Error::other("a fake is connected to nothing")) })
        }
    }

    fn kind(memory_mib: u32) -> Kind {
        let shape = MachineShape { vcpus: 1, memory_mib, acceleration: Acceleration::Tcg, tsc_khz: None };
        Kind { shape, image: "base".to_owned(), base_digest: "0".to_owned(), drive_bytes: 1 << 20 }
    }

    fn berth(has_ended: bool) -> Berth {
        let engine = Engine::Ready(Box::new(Fake { has_ended }));
        Berth { connector: Arc::new(Nowhere), gate: None, drive: tempfile::tempfile().unwrap(), engine }
    }

    /// Does what is to be done until there is nothing to do, and tells for what kinds.
    fn tend(standbys: &Standbys, now: Instant) -> Vec<u32> {
        let mut made = Vec::new();
        while let Next::Make(kind) = standbys.next_at(now) {
            made.push(kind.shape.memory_mib);
            standbys.put(kind, berth(false));
        }
        made
    }

    #[test]
    fn as_many_stand_by_as_were_started_a_moment_ago_and_no_more_than_may() {
        let standbys = Standbys::new(3);
        assert!(standbys.started(kind(128)), "somebody has to begin to tend them");
        assert!(!standbys.started(kind(128)));
        let now = Instant::now();
        assert_eq!(tend(&standbys, now), [128, 128]);
        assert!(standbys.take(&kind(256)).is_none(), "it is another kind's");
        assert!(standbys.take(&kind(128)).is_some());
        for _ in 0..9 {
            assert!(!standbys.started(kind(128)));
        }
        assert_eq!(tend(&standbys, Instant::now()).len(), 2, "there may be three");
        // What another kind had is kept while nobody else wants the place.
        let later = Instant::now() + RECENT;
        assert!(tend(&standbys, later).is_empty() && standbys.ready() == 3);
        let none = Standbys::new(0);
        assert!(!none.started(kind(128)) && none.next() == Next::Over);
    }

    #[test]
    fn what_is_not_wanted_gives_way_and_ends_after_a_while() {
        let standbys = Standbys::new(2);
        standbys.started(kind(128));
        standbys.started(kind(128));
        let now = Instant::now();
        assert_eq!(tend(&standbys, now), [128, 128]);
        standbys.started(kind(256));
        let other = |at| standbys.lock().demands.iter_mut().find(|d| d.kind == kind(256)).unwrap().starts[0] = at;
        assert!(tend(&standbys, now).is_empty(), "both are wanted");
        let later = now + RECENT + Duration::from_secs(1);
        other(later);
        assert_eq!(tend(&standbys, later), [256], "one of them is not wanted as much any more");
        assert!(standbys.take(&kind(128)).is_some() && standbys.take(&kind(256)).is_some());
        assert_eq!(tend(&standbys, later), [256]);
        assert_eq!(standbys.next_at(later + KEPT), Next::Over);
        assert_eq!(standbys.ready(), 0);
        assert!(standbys.started(kind(128)), "somebody has to begin again");
    }

    #[test]
    fn one_that_has_ended_is_nobodys_and_a_closed_host_has_none() {
        let standbys = Standbys::new(2);
        standbys.started(kind(128));
        standbys.put(kind(128), berth(true));
        standbys.put(kind(128), berth(false));
        assert!(!standbys.take(&kind(128)).unwrap().has_ended() && standbys.take(&kind(128)).is_none());
        standbys.put(kind(128), berth(true));
        assert_eq!(tend(&standbys, Instant::now()), [128], "the one that has ended does not count");
        standbys.close();
        assert!(standbys.ready() == 0 && standbys.next() == Next::Over);
        standbys.put(kind(128), berth(false));
        assert!(standbys.take(&kind(128)).is_none(), "one that was being made comes too late");
    }
}
