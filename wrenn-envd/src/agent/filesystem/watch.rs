//! Watching a directory.
//!
//! ```text
//!  kernel's queue -> Watch::run -> Tracker::take -> channel -> stream, or watcher that is asked
//! ```
//!
//! Every queue is bounded. When nobody takes events out of the channel the kernel's queue fills up; once that overflows,
//! what was lost is said ([`WatchError::Lost`]), never passed over.

pub(super) mod error;
pub(super) mod options;
mod sys;
mod tracker;
pub(super) mod watchers;

use std::{io, time::Duration};

use nix::{errno::Errno, sys::inotify::InotifyEvent};
use tokio::{sync::mpsc, time::sleep};

use self::{
    error::{Events, WatchError},
    options::WatchOptions,
    sys::{Incoming, Instance},
    tracker::{State, Tracker},
};
use super::error::FileError;
use crate::{
    agent::{identity::as_user, users::User},
    proto::filesystem::FilesystemEvent,
};

/// Watches a directory as `user` until the receiver is dropped. What happens after this returns is told.
pub(super) async fn start(user: User, options: WatchOptions) -> Result<Events, FileError> {
    let opened = as_user(user.clone(), move || {
        options.check()?;
        let instance = Instance::new().map_err(|errno| match errno {
            Errno::EMFILE => FileError::TooMany(
                "there are too many watches: remove some, or raise fs.inotify.max_user_instances".to_owned(),
            ),
            errno => FileError::at(&options.path)(errno.into()),
        })?;
        Ok::<_, FileError>((instance.clone(), Tracker::open(instance, options)?))
    });
    let (instance, tracker) = opened.await?;
    let (sender, receiver) = mpsc::channel(EVENTS_HELD);
    tokio::spawn(Watch { incoming: Incoming::register(instance)?, sender, user }.run(tracker));
    Ok(receiver)
}

/// The task behind a watch.
struct Watch {
    incoming: Incoming,
    sender: mpsc::Sender<Result<FilesystemEvent, WatchError>>,
    user: User,
}

impl Watch {
    async fn run(self, mut tracker: Tracker) {
        loop {
            let batch = tokio::select! {
                batch = self.read(tracker.has_loose_ends()) => batch,
                () = self.sender.closed() => return,
            };
            let taken = as_user(self.user.clone(), move || {
                let mut events = Vec::new();
                let state = tracker.take(batch?, &mut events)?;
                Ok::<_, FileError>((tracker, events, state))
            });
            let (after, events, state) = match taken.await {
                Ok(taken) => taken,
                Err(error) => return drop(self.sender.send(Err(WatchError::Ended(error))).await),
            };
            tracker = after;
            let lost = (state == State::Lost).then_some(Err(WatchError::Lost));
            for event in events.into_iter().map(Ok).chain(lost) {
                if self.sender.send(event).await.is_err() {
                    return;
                }
            }
            if state == State::Gone {
                return;
            }
        }
    }

    /// What the kernel has, or nothing when there is nothing for a moment and the tracker waits to hear that.
    async fn read(&self, has_loose_ends: bool) -> io::Result<Vec<InotifyEvent>> {
        if !has_loose_ends {
            return self.incoming.read().await;
        }
        tokio::select! {
            events = self.incoming.read() => events,
            () = sleep(LOOSE_END_WAIT) => Ok(Vec::new()),
        }
    }
}

/// How many events wait for a client, besides those in the kernel's queue.
const EVENTS_HELD: usize = 4096;

/// A name that was left is taken up again at once, or was moved out of sight.
const LOOSE_END_WAIT: Duration = Duration::from_millis(20);
