use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::sys::inotify::InotifyEvent;
use tokio::sync::Notify;

/// What the kernel told of one watch, and the watch has not taken yet. It is bounded: what does not fit is lost, and that is
/// said.
#[derive(Debug)]
pub(super) struct Inbox {
    held: Mutex<Held>,
    has_come: Notify,
    room: Arc<Room>,
}

/// How many events all inboxes hold together.
#[derive(Debug, Default)]
pub(super) struct Room(AtomicUsize);

#[derive(Debug, Default)]
struct Held {
    events: VecDeque<Arc<InotifyEvent>>,
    is_lossy: bool,
}

/// Events in their order, and whether some that came after them were lost.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) events: Vec<Arc<InotifyEvent>>,
    pub(super) is_lossy: bool,
}

impl Inbox {
    pub(super) fn new(room: Arc<Room>) -> Self {
        Self { held: Mutex::default(), has_come: Notify::new(), room }
    }

    pub(super) fn push(&self, event: Arc<InotifyEvent>) {
        let mut held = self.held();
        // What comes after a loss is not told before the loss is.
        let has_room = !held.is_lossy && held.events.len() < EVENTS_MAX && self.room.take();
        if has_room {
            held.events.push_back(event);
        } else {
            held.is_lossy = true;
        }
        self.has_come.notify_one();
    }

    /// Notes that events were lost.
    pub(super) fn lose(&self) {
        self.held().is_lossy = true;
        self.has_come.notify_one();
    }

    /// What has come; waits until something has.
    ///
    /// # Cancel-Safety
    ///
    /// No event is lost when it is cancelled.
    pub(super) async fn take(&self) -> Batch {
        loop {
            let batch = self.try_take();
            if batch.is_lossy || !batch.events.is_empty() {
                return batch;
            }
            self.has_come.notified().await;
        }
    }

    fn try_take(&self) -> Batch {
        let mut held = self.held();
        let count = held.events.len().min(BATCH_EVENTS);
        let events: Vec<_> = held.events.drain(..count).collect();
        self.room.give_back(count);
        let is_lossy = held.events.is_empty() && std::mem::take(&mut held.is_lossy);
        if held.events.is_empty() {
            held.events.shrink_to(BATCH_EVENTS);
        }
        Batch { events, is_lossy }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let count = self.held().events.len();
        self.room.give_back(count);
    }
}

impl Room {
    fn take(&self) -> bool {
        let taken = self.0.fetch_add(1, Ordering::Relaxed);
        if taken >= EVENTS_MAX_TOGETHER {
            self.give_back(1);
        }
        taken < EVENTS_MAX_TOGETHER
    }

    fn give_back(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }
}

/// As many as the kernel would hold for a watch with an instance of its own.
const EVENTS_MAX: usize = 16_384;

/// Each has a name of up to 255 bytes.
const EVENTS_MAX_TOGETHER: usize = 65_536;

/// How many a watch takes at a time.
const BATCH_EVENTS: usize = 1024;

#[cfg(test)]
mod tests {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::*;

    fn event() -> Arc<InotifyEvent> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let wd = inotify.add_watch("/", AddWatchFlags::IN_CREATE).unwrap();
        Arc::new(InotifyEvent { wd, mask: AddWatchFlags::IN_CREATE, cookie: 0, name: Some("name".into()) })
    }

    #[tokio::test]
    async fn what_does_not_fit_is_lost_and_said_after_what_does() {
        let room = Arc::<Room>::default();
        let inboxes: Vec<_> = (0..5).map(|_| Inbox::new(room.clone())).collect();
        let event = event();
        for inbox in &inboxes {
            for _ in 0..EVENTS_MAX + 5 {
                inbox.push(event.clone());
            }
        }
        for (number, inbox) in inboxes.iter().enumerate() {
            let (mut count, mut losses) = (0, 0);
            while losses == 0 {
                let batch = inbox.take().await;
                count += batch.events.len();
                losses += usize::from(batch.is_lossy);
            }
            assert_eq!(count, if number < 4 { EVENTS_MAX } else { 0 }, "{number}");
            inbox.push(event.clone());
            assert!(!inbox.take().await.is_lossy);
        }
        assert_eq!(room.0.load(Ordering::Relaxed), 0);
    }
}
