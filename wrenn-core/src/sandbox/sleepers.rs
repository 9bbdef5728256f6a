//! Paused sandboxes that a connection wakes, and those that were woken.
//!
//! ```text
//!  a pause, PausedSandbox::listen
//!     │
//!   sleep ──▶ asleep ── watch: a connection ──▶ wake ──┬─ it runs ─▶ kept, until it no longer runs
//!              ▲  │                                    └─ it failed: its connections are reset, and
//!              │  │                                       those that come too soon after it ──▶ asleep
//!              │  └─ claim, by whoever has the sandbox's lock and resumes or deletes it
//!              └──── a claim that is dropped
//! ```
//!
//! The listeners are this program's. They are closed with the last handle of the host, and by its shutdown. A sandbox that was
//! woken has no other owner than this, since nobody asked for it: it runs until it is paused, is killed, or ends.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, select_all};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error, Result, chain};
use crate::id::SandboxId;
use crate::network::publish::SleepingPort;
use crate::patience::patient;
use crate::sandbox::event::{Events, HostEventKind};
use crate::sandbox::shared::Shared;

/// Resumes a sandbox.
pub(super) type Wake = Arc<dyn Fn(SandboxId) -> BoxFuture<'static, Result<Arc<Shared>>> + Send + Sync>;

/// The sandboxes of a host that are asleep in this program, and those that were woken.
pub(crate) struct Sleepers {
    wake: Wake,
    events: Events,
    /// One permit for each sandbox that may be woken at the same time.
    room: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    asleep: HashMap<SandboxId, Sleeper>,
    /// Those that are being woken: nobody watches their ports.
    waking: HashSet<SandboxId>,
    wakes: JoinSet<()>,
    kept: HashMap<SandboxId, Arc<Shared>>,
    is_closed: bool,
}

struct Sleeper {
    ports: Vec<SleepingPort>,
    /// How many attempts to wake it have failed one after another.
    failures: u32,
    /// `None` while it is being woken.
    watching: Option<AbortOnDropHandle<()>>,
}

/// The ports of a sandbox, for whoever has the sandbox's lock. Dropping it leaves the sandbox asleep as it was.
#[derive(Debug)]
pub(crate) struct Claim {
    sleepers: Weak<Sleepers>,
    id: SandboxId,
    pub(super) ports: Vec<SleepingPort>,
    failures: u32,
}

impl Sleepers {
    pub(super) fn new(wake: Wake, events: Events) -> Self {
        Self { wake, events, room: Arc::new(Semaphore::new(WAKES_MAX)), state: Mutex::default() }
    }

    /// The sandbox is paused, and a connection to one of these ports wakes it. They are closed where the host was shut down.
    pub(super) fn sleep(self: &Arc<Self>, id: &SandboxId, ports: Vec<SleepingPort>) {
        self.put(id, ports, 0);
    }

    /// Takes the ports of a sandbox, whose lock the caller has. It returns once nobody watches them; there may be none.
    pub(super) async fn claim(self: &Arc<Self>, id: &SandboxId) -> Claim {
        let sleeper = self.state().asleep.remove(id);
        let (ports, failures, watching) = match sleeper {
            Some(Sleeper { ports, failures, watching }) => (ports, failures, watching),
            None => (Vec::new(), 0, None),
        };
        let claim = Claim { sleepers: Arc::downgrade(self), id: id.clone(), ports, failures };
        if let Some(watching) = watching {
            watching.abort();
            // The only error is that it was aborted.
            let _ = watching.await;
        }
        claim
    }

    /// Lets go of the sandboxes that no longer run.
    pub(super) fn let_go(&self) {
        let over: Vec<_> = self.state().kept.extract_if(|_, shared| shared.is_over()).collect();
        drop(over);
    }

    /// Closes every port, and gives up the wakes that are under way. Returns once that is done. From now on no sandbox falls
    /// asleep; those that were woken run on.
    pub(crate) async fn close(&self) {
        let (asleep, mut wakes) = {
            let mut state = self.state();
            state.is_closed = true;
            (std::mem::take(&mut state.asleep), std::mem::take(&mut state.wakes))
        };
        for sleeper in asleep.into_values() {
            if let Some(watching) = sleeper.watching {
                watching.abort();
                let _ = watching.await;
            }
        }
        wakes.shutdown().await;
    }

    fn put(self: &Arc<Self>, id: &SandboxId, ports: Vec<SleepingPort>, failures: u32) {
        let mut state = self.state();
        if ports.is_empty() || state.is_closed {
            return;
        }
        let watching = (!state.waking.contains(id)).then(|| self.watch(id, &ports, Instant::now()));
        state.asleep.insert(id.clone(), Sleeper { ports, failures, watching });
    }

    /// Watches ports until a connection comes that may wake the sandbox. Those that come before `not_before` are reset.
    fn watch(self: &Arc<Self>, id: &SandboxId, ports: &[SleepingPort], not_before: Instant) -> AbortOnDropHandle<()> {
        let (this, id, ports) = (Arc::downgrade(self), id.clone(), ports.to_vec());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut address = called(&ports).await;
            while Instant::now() < not_before {
                ports.iter().for_each(|port| port.listener.reset());
                address = called(&ports).await;
            }
            if let Some(this) = this.upgrade() {
                this.begin_wake(id, address);
            }
        }))
    }

    fn begin_wake(self: &Arc<Self>, id: SandboxId, address: SocketAddr) {
        let mut state = self.state();
        // It may have been claimed just now.
        let Some(sleeper) = state.asleep.get_mut(&id) else { return };
        sleeper.watching = None;
        state.waking.insert(id.clone());
        while state.wakes.try_join_next().is_some() {}
        let (this, wake, room) = (Arc::downgrade(self), Arc::clone(&self.wake), Arc::clone(&self.room));
        let events = self.events.clone();
        state.wakes.spawn(async move {
            let woken = async {
                let _turn = room.acquire().await;
                events.tell(&id, HostEventKind::Woken { address });
                wake(id.clone()).await
            };
            let woken = timeout(patient(WAKE_MAX), woken).await;
            let late = |_elapsed| Error::failed("wake the sandbox")(format!("it took {WAKE_MAX:?}").into());
            if let Some(this) = this.upgrade() {
                this.end_wake(&id, woken.map_err(late).flatten());
            }
        });
    }

    fn end_wake(self: &Arc<Self>, id: &SandboxId, woken: Result<Arc<Shared>>) {
        let mut state = self.state();
        state.waking.remove(id);
        let error = match woken {
            Ok(shared) => {
                state.kept.insert(id.clone(), shared);
                drop(state);
                // It may have ended before it was kept.
                return self.let_go();
            }
            Err(error) => error,
        };
        // Somebody else may have claimed it, and will say what comes of that.
        let Some(mut sleeper) = state.asleep.remove(id) else { return };
        if !matches!(error, Error::NotFound { .. }) {
            sleeper.ports.iter().for_each(|port| port.listener.reset());
            sleeper.failures += 1;
            sleeper.watching = Some(self.watch(id, &sleeper.ports, Instant::now() + pause_after(sleeper.failures)));
            state.asleep.insert(id.clone(), sleeper);
        }
        drop(state);
        tracing::warn!(%id, error = &error as &dyn std::error::Error, "a connection could not wake the sandbox");
        self.events.tell(id, HostEventKind::WakeFailed { error: chain(&error) });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Gives the ports to a sandbox that runs again.
    pub(super) fn take(mut self) -> Vec<SleepingPort> {
        std::mem::take(&mut self.ports)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(sleepers) = self.sleepers.upgrade() {
            sleepers.put(&self.id, std::mem::take(&mut self.ports), self.failures);
        }
    }
}

impl fmt::Debug for Sleepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Sleepers")
            .field("asleep", &state.asleep.keys())
            .field("waking", &state.waking)
            .field("kept", &state.kept.keys())
            .finish_non_exhaustive()
    }
}

/// Waits for a connection to one of these ports, and returns the port's address.
async fn called(ports: &[SleepingPort]) -> SocketAddr {
    let calls = ports.iter().map(|SleepingPort { port, listener }| listener.called().map(|()| port.address).boxed());
    select_all(calls).await.0
}

/// How long nobody tries again to wake a sandbox after so many attempts that failed.
fn pause_after(failures: u32) -> Duration {
    PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX)
}

/// More sandboxes wait for their turn: each resume takes processor time, memory and disk.
const WAKES_MAX: usize = 16;
/// For the turn and the resume: a guest of 64 GiB whose memory is read ahead from a slow disk takes minutes.
const WAKE_MAX: Duration = Duration::from_secs(5 * 60);
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
