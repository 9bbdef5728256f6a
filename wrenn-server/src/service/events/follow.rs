//! A listener of one owner's events, who has missed some.

use std::collections::{HashSet, VecDeque};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::service::error::ServiceError;
use crate::service::events::Events;
use crate::store::records::EventRecord;

/// The events of one owner, from a place on.
#[derive(Debug)]
pub struct Followed {
    owner: String,
    /// What has happened before.
    missed: VecDeque<EventRecord>,
    /// Their names: those that happened meanwhile are heard of once more.
    told: HashSet<String>,
    heard: broadcast::Receiver<EventRecord>,
    closing: CancellationToken,
}

/// What a listener is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Something has happened.
    Event(EventRecord),
    /// The listener did not listen for so long that something was lost.
    TooSlow,
    /// The server ends.
    Over,
}

impl Events {
    /// The events of an owner: after the one of this id, or from now on.
    ///
    /// # Errors
    /// [`ServiceError::NoEvent`] where that one is not kept, or too many have happened since, [`ServiceError::Store`].
    pub async fn follow(&self, owner: &str, after: Option<&str>) -> Result<Followed, ServiceError> {
        // Before the others are looked up, so that nothing falls between.
        let heard = self.listen();
        let missed = match after {
            None => Vec::new(),
            Some(id) => {
                let none = || ServiceError::NoEvent { id: id.to_owned() };
                let missed = self.store.events_after(owner, id, MISSED_MAX + 1).await?.ok_or_else(none)?;
                if missed.len() > MISSED_MAX as usize {
                    return Err(none());
                }
                missed
            }
        };
        let told = missed.iter().map(|event| event.id.clone()).collect();
        let (owner, closing) = (owner.to_owned(), self.closing.clone());
        Ok(Followed { owner, missed: missed.into(), told, heard, closing })
    }
}

impl Followed {
    /// The next one.
    ///
    /// # Cancel-Safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Told {
        if let Some(event) = self.missed.pop_front() {
            return Told::Event(event);
        }
        loop {
            let heard = tokio::select! {
                biased;
                heard = self.heard.recv() => heard,
                () = self.closing.cancelled() => return Told::Over,
            };
            match heard {
                Ok(event) if event.owner == self.owner && !self.told.remove(&event.id) => return Told::Event(event),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => return Told::TooSlow,
                Err(RecvError::Closed) => return Told::Over,
            }
        }
    }
}

/// Whoever has missed more lists them.
const MISSED_MAX: u32 = 1000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::records::Subject;
    use crate::store::sqlite::Sqlite;

    fn event(number: u64, owner: &str) -> EventRecord {
        EventRecord {
            id: format!("ev{number}"),
            owner: owner.to_owned(),
            subject: Subject::Sandbox("sb00f00ba70000002a".parse().expect("an id")),
            template: "base".to_owned(),
            kind: "paused".to_owned(),
            why: None,
            at_ms: 1,
        }
    }

    #[tokio::test]
    async fn a_listener_hears_its_own_once_and_is_told_when_it_is_too_slow() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Sqlite::open(&dir.path().join("records.sqlite")).await.expect("a store"));
        let events = Events::new(store);
        let note = async |number, owner: &str| {
            events.store.add_event(&event(number, owner), 0).await.expect("kept");
            events.listeners.send(event(number, owner)).ok();
        };
        note(1, "ada").await;
        let mut now = events.follow("ada", None).await.expect("a listener");
        for (number, owner) in [(2, "ada"), (3, "eve")] {
            events.store.add_event(&event(number, owner), 0).await.expect("kept");
        }
        let mut late = events.follow("ada", Some("ev1")).await.expect("a listener");
        // It was kept before the listener looked, and is told after it.
        events.listeners.send(event(2, "ada")).ok();
        note(4, "eve").await;
        note(5, "ada").await;
        for listener in [&mut now, &mut late] {
            assert_eq!(listener.next().await, Told::Event(event(2, "ada")));
            assert_eq!(listener.next().await, Told::Event(event(5, "ada")));
        }
        for unknown in ["ev9", "ev3"] {
            let refused = events.follow("ada", Some(unknown)).await.expect_err("not its own");
            assert!(matches!(refused, ServiceError::NoEvent { .. }));
        }
        for number in 10..2000 {
            events.listeners.send(event(number, "eve")).ok();
        }
        assert_eq!(now.next().await, Told::TooSlow);
        let mut last = events.follow("ada", None).await.expect("a listener");
        events.close();
        assert_eq!(last.next().await, Told::Over);
    }
}
