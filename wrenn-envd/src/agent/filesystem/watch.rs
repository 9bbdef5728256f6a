//! Watching a directory.
//!
//! ```text
//!  kernel's queue -> Hub::dispatch -> Inbox -> Watch::run -> Tracker::take -> Outbox -> stream, or watcher that is asked
//! ```
//!
//! Every queue is bounded. When nobody takes events out of the outbox the inbox fills up; once that overflows, what was
//! lost is said ([`WatchError::Lost`]), never passed over.

mod directory;
pub(super) mod error;
mod hub;
mod inbox;
pub(super) mod options;
pub(super) mod outbox;
mod sys;
mod tracker;
pub(super) mod watchers;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use self::{
    error::WatchError,
    hub::Hubs,
    inbox::{Batch, Inbox},
    options::WatchOptions,
    outbox::{Events, Outbox},
    tracker::{State, Tracker},
};
use super::error::FileError;
use crate::agent::{disk::threads::as_user, users::User};

/// All watches of the guest.
#[derive(Debug, Default)]
pub(super) struct Watches(Hubs);

impl Watches {
    /// Watches a directory as `user` until the receiver is dropped. What happens after this returns is told.
    pub(super) async fn start(&self, user: User, options: WatchOptions) -> Result<Events, FileError> {
        let hub = self.0.current().map_err(FileError::at(&options.path))?;
        let membership =
            hub.join().ok_or_else(|| FileError::TooMany("there are too many watches: remove some".to_owned()))?;
        drop(hub);
        let inbox = membership.inbox.clone();
        let tracker = as_user(user.clone(), move || {
            options.check()?;
            Tracker::open(membership, options)
        });
        let tracker = tracker.await?;
        let (outbox, events) = outbox::pair();
        tokio::spawn(Watch { inbox, outbox, user }.run(tracker));
        Ok(events)
    }
}

/// The task behind a watch.
struct Watch {
    inbox: Arc<Inbox>,
    outbox: Outbox,
    user: User,
}

impl Watch {
    async fn run(self, mut tracker: Tracker) {
        loop {
            let batch = tokio::select! {
                batch = self.next(tracker.has_loose_ends()) => batch,
                () = self.outbox.closed() => return,
            };
            let taken = as_user(self.user.clone(), move || {
                let mut events = Vec::new();
                let state = tracker.take(batch, &mut events)?;
                Ok::<_, FileError>((tracker, events, state))
            });
            let (after, events, state) = match taken.await {
                Ok(taken) => taken,
                Err(error) => return drop(self.outbox.send(Err(WatchError::Ended(error))).await),
            };
            tracker = after;
            let lost = (state == State::Lost).then_some(Err(WatchError::Lost));
            for event in events.into_iter().map(Ok).chain(lost) {
                if self.outbox.send(event).await.is_err() {
                    return;
                }
            }
            if state == State::Gone {
                return;
            }
        }
    }

    /// What has come, or nothing when there is nothing for a moment and the tracker waits to hear that.
    async fn next(&self, has_loose_ends: bool) -> Batch {
        if has_loose_ends {
            return timeout(LOOSE_END_WAIT, self.inbox.take()).await.unwrap_or_default();
        }
        self.inbox.take().await
    }
}

/// A name that was left is taken up again at once, or was moved out of sight.
const LOOSE_END_WAIT: Duration = Duration::from_millis(20);
