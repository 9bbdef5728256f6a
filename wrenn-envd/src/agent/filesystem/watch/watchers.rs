use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use connectrpc::ConnectError;
use tokio::sync::mpsc::error::TryRecvError;

use super::{Events, WatchError};
use crate::proto::filesystem::FilesystemEvent;

/// The watches of clients that ask instead of listening.
#[derive(Debug, Default)]
pub(in super::super) struct Watchers {
    inner: Mutex<Inner>,
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
}

impl Watchers {
    /// Keeps a watch until it is removed, and names it.
    pub(in super::super) fn insert(&self, events: Events) -> String {
        let mut inner = self.inner();
        inner.last += 1;
        let id = format!("w{}", inner.last);
        inner.watchers.insert(id.clone(), Watcher { events, error: None });
        id
    }

    /// What has happened since the last call. Lost events are an error once, after what came before them.
    pub(in super::super) fn take(&self, id: &str) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let mut inner = self.inner();
        let watcher = inner.watchers.get_mut(id).ok_or_else(|| unknown(id))?;
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
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::not_found(format!("no watcher {:?}", id.chars().take(64).collect::<String>()))
}
