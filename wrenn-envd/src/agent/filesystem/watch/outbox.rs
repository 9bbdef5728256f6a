use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::error::WatchError;
use crate::{agent::filesystem::entry::text_bytes, proto::filesystem::FilesystemEvent};

/// What a watch tells.
type Item = Result<FilesystemEvent, WatchError>;

/// The end of a watch that tells. What waits to be taken is bounded, in number and in bytes.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: mpsc::Sender<(Item, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

/// Events, until the directory is gone: then there are no more.
#[derive(Debug)]
pub(in crate::agent::filesystem) struct Events(mpsc::Receiver<(Item, OwnedSemaphorePermit)>);

/// Nobody listens any more.
#[derive(Debug)]
pub(super) struct Closed;

pub(super) fn pair() -> (Outbox, Events) {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    (Outbox { sender, room: Arc::new(Semaphore::new(BYTES_MAX)) }, Events(receiver))
}

impl Outbox {
    /// Tells, as soon as there is room.
    pub(super) async fn send(&self, item: Item) -> Result<(), Closed> {
        let bytes = item.as_ref().map_or(0, bytes_of).min(BYTES_MAX);
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = tokio::select! {
            room = self.room.clone().acquire_many_owned(wanted) => room.map_err(|_| Closed)?,
            () = self.closed() => return Err(Closed),
        };
        self.sender.send((item, room)).await.map_err(|_| Closed)
    }

    /// Waits until nobody listens any more.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl Events {
    pub(in crate::agent::filesystem) async fn recv(&mut self) -> Option<Item> {
        self.0.recv().await.map(|(item, _)| item)
    }

    pub(super) fn try_recv(&mut self) -> Result<Item, mpsc::error::TryRecvError> {
        self.0.try_recv().map(|(item, _)| item)
    }
}

fn bytes_of(event: &FilesystemEvent) -> usize {
    event.name.len() + event.entry.as_option().map_or(0, text_bytes)
}

/// How many events wait for a client, besides those in the inbox.
const EVENTS_MAX: usize = 4096;

/// How much text they hold: entries come with the files' metadata.
const BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::proto::filesystem::EntryInfo;

    #[tokio::test(start_paused = true)]
    async fn large_entries_wait_until_there_is_room() {
        let (outbox, mut events) = pair();
        let entry = EntryInfo { path: "x".repeat(BYTES_MAX / 2), ..Default::default() };
        let event = FilesystemEvent { entry: entry.into(), ..Default::default() };
        for _ in 0..2 {
            outbox.send(Ok(event.clone())).await.unwrap();
        }
        let third = outbox.send(Ok(event.clone()));
        timeout(Duration::from_secs(1), third).await.unwrap_err();
        events.recv().await.unwrap().unwrap();
        outbox.send(Ok(event)).await.unwrap();
        drop(events);
        outbox.send(Err(WatchError::Lost)).await.unwrap_err();
    }
}
