use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use connectrpc::ConnectError;
use tokio::{
    sync::mpsc::error::TryRecvError,
    time::{Instant, sleep_until},
};

use super::{error::WatchError, outbox::Events};
use crate::proto::filesystem::FilesystemEvent;

/// The watches of clients that ask instead of listening. One that is not asked for [`IDLE_MAX`] is removed: its client is
/// gone, and has not said so.
#[derive(Debug, Default)]
pub(in super::super) struct Watchers {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    watchers: HashMap<String, Watcher>,
}

#[derive(Debug)]
struct Watcher {
    events: Events,
    /// What comes after the events that were handed out last.
    error: Option<WatchError>,
    /// When somebody last wanted to know.
    asked_at: Instant,
}

impl Watchers {
    /// Keeps a watch until it is removed, or nobody asks for it, and names it.
    pub(in super::super) fn insert(&self, events: Events) -> String {
        let mut inner = self.inner();
        inner.last += 1;
        let id = format!("w{}", inner.last);
        inner.watchers.insert(id.clone(), Watcher { events, error: None, asked_at: Instant::now() });
        tokio::spawn(expire(Arc::downgrade(&self.inner), id.clone()));
        id
    }

    /// What has happened since the last call. Lost events are an error once, after what came before them.
    pub(in super::super) fn take(&self, id: &str) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let mut inner = self.inner();
        let watcher = inner.watchers.get_mut(id).ok_or_else(|| unknown(id))?;
        watcher.asked_at = Instant::now();
        if let Some(error) = watcher.error.take() {
            return Err(error.into());
        }
        let mut taken = Vec::new();
        loop {
            match watcher.events.try_recv() {
                Ok(Ok(event)) => taken.push(event),
                Ok(Err(error)) if taken.is_empty() => return Err(error.into()),
                Ok(Err(error)) => watcher.error = Some(error),
                Err(TryRecvError::Disconnected) if taken.is_empty() => {
                    return Err(ConnectError::not_found(format!("the directory of the watcher {id:?} is gone")));
                }
                Err(_) => return Ok(taken),
            }
            if watcher.error.is_some() {
                return Ok(taken);
            }
        }
    }

    pub(in super::super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.inner().watchers.remove(id).map(drop).ok_or_else(|| unknown(id))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

async fn expire(watchers: Weak<Mutex<Inner>>, id: String) {
    let mut until = Instant::now() + IDLE_MAX;
    loop {
        sleep_until(until).await;
        match watchers.upgrade().and_then(|inner| lock(&inner).wanted_until(&id)) {
            Some(later) => until = later,
            None => return,
        }
    }
}

impl Inner {
    /// Until when a watch is kept if nobody asks for it; one whose time is up is removed.
    fn wanted_until(&mut self, id: &str) -> Option<Instant> {
        let until = self.watchers.get(id)?.asked_at + IDLE_MAX;
        if until > Instant::now() {
            return Some(until);
        }
        self.watchers.remove(id);
        None
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unknown(id: &str) -> ConnectError {
    let id = id.chars().take(64).collect::<String>();
    ConnectError::not_found(format!(
        "no watcher {id:?}: it was removed, or not asked for {} minutes; create it again",
        IDLE_MAX.as_secs() / 60
    ))
}

const IDLE_MAX: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::agent::filesystem::watch::outbox::{Outbox, pair};

    async fn is_closed(outbox: &Outbox) -> bool {
        timeout(Duration::ZERO, outbox.closed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_nobody_asks_for_is_removed_and_one_that_is_asked_for_stays() {
        let watchers = Watchers::default();
        let (forgotten, events) = pair();
        let forgotten_id = watchers.insert(events);
        let (asked, events) = pair();
        let asked_id = watchers.insert(events);
        for _ in 0..3 {
            sleep(IDLE_MAX * 2 / 3).await;
            watchers.take(&asked_id).unwrap();
        }
        assert!(is_closed(&forgotten).await && !is_closed(&asked).await);
        let message = watchers.take(&forgotten_id).unwrap_err().message.unwrap();
        assert!(message.contains("10 minutes"), "{message}");
        sleep(IDLE_MAX + Duration::from_secs(1)).await;
        assert!(is_closed(&asked).await && watchers.inner().watchers.is_empty());
    }
}
