//! The inbox of a sandbox's task: requests in their order, and urgent events that do not wait for requests.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::agent::client::AgentClient;
use crate::sandbox::countdown::Countdown;
use crate::sandbox::request::{Reply, Request};
use crate::state::{Lifetime, OnExpiry};
use crate::vmm::exit;

/// The task's ends of the channels that it shares with the handles.
pub(super) struct Inbox {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) kills: mpsc::UnboundedReceiver<Reply<()>>,
    pub(super) countdown: watch::Receiver<Countdown>,
    pub(super) agent: Arc<AgentClient>,
}

/// What an idle task wakes up for.
pub(super) enum Wake {
    VmEnded,
    Killed(Reply<()>),
    /// The last handle was dropped.
    Dropped,
    Request(Request),
    Expired,
}

/// An event that stops the task's present work.
pub(super) enum Urgent {
    Kill(Reply<()>),
    /// The end of a time-to-live that kills.
    Expired,
    /// The work has taken too long, which is this long.
    TooLong(Duration),
}

impl Inbox {
    /// Waits for the next event. An expiry whose pause failed comes again after a while.
    pub(super) async fn next(&mut self, mut exited: watch::Receiver<Option<exit::Exit>>, failed_expiries: u32) -> Wake {
        let (countdown, agent) = (self.countdown.clone(), Arc::clone(&self.agent));
        let expired = async {
            if failed_expiries > 0 {
                sleep(EXPIRY_RETRY).await;
            }
            expired(countdown, &agent).await;
        };
        tokio::select! {
            biased;
            _ = exited.wait_for(Option::is_some) => Wake::VmEnded,
            Some(reply) = self.kills.recv() => Wake::Killed(reply),
            request = self.requests.recv() => request.map_or(Wake::Dropped, Wake::Request),
            () = expired => Wake::Expired,
        }
    }

    /// Does `work` to its end, unless an urgent event comes first: then the work is dropped unfinished.
    pub(super) async fn urgent_or<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Urgent> {
        let (countdown, agent) = (self.countdown.clone(), Arc::clone(&self.agent));
        let expired = async {
            let mut kills = countdown.clone();
            // A time-to-live that pauses waits until the guest is free to be paused.
            let _ = kills.wait_for(|countdown| countdown.on_expiry() == OnExpiry::Kill).await;
            expired(countdown, &agent).await;
        };
        tokio::select! {
            biased;
            Some(reply) = self.kills.recv() => Err(Urgent::Kill(reply)),
            () = expired => Err(Urgent::Expired),
            done = work => Ok(done),
            () = sleep(WORK_MAX) => Err(Urgent::TooLong(WORK_MAX)),
        }
    }

    pub(super) fn lifetime(&self) -> Option<Lifetime> {
        self.countdown.borrow().lifetime
    }

    pub(super) fn on_expiry(&self) -> OnExpiry {
        self.countdown.borrow().on_expiry()
    }
}

/// Waits for the end of the time-to-live, which may be set again and put off by use while this waits.
async fn expired(mut countdown: watch::Receiver<Countdown>, agent: &AgentClient) {
    loop {
        let ends_at = countdown.borrow_and_update().ends_at(agent.last_used());
        let at_end = async {
            match ends_at {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = at_end => {
                let now = Instant::now();
                if countdown.borrow().ends_at(agent.last_used()).is_some_and(|end| end <= now) {
                    return;
                }
            }
            // All handles are gone, so the time-to-live cannot change any more.
            Ok(()) = countdown.changed() => {}
        }
    }
}

const EXPIRY_RETRY: Duration = Duration::from_secs(10);
/// A save of 64 GiB to a slow disk takes minutes. What takes longer hangs, in a disk or in a VMM.
const WORK_MAX: Duration = Duration::from_secs(30 * 60);
