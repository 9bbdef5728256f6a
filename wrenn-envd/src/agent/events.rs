//! `GET /events?after=NUMBER`: what has become of the guest, for clients that must renew something of theirs.
//!
//! The answer comes as soon as there is an event after that number, or empty after [`WAIT_MAX`]. A restore answers whoever
//! waits, and then closes the connection. That leads nowhere where the guest's peer is not the one from before: then the
//! client asks again, on a new connection and with the same number, and is told.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::api_error::ApiError;
use crate::{
    guest_event::{EventsResponse, GuestEvent, GuestEventKind},
    timestamp::Timestamp,
};

/// The last events, the newest last.
#[derive(Debug)]
pub(super) struct Events {
    held: Mutex<VecDeque<GuestEvent>>,
    last: watch::Sender<u64>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { held: Mutex::default(), last: watch::Sender::new(0) }
    }

    pub(super) fn add(&self, event: GuestEventKind) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *self.last.borrow() + 1;
        held.push_back(GuestEvent { number, event, timestamp: Timestamp::now() });
        if held.len() > HELD_MAX {
            held.pop_front();
        }
        self.last.send_replace(number);
    }

    /// What came after `number`; waits for it.
    pub(super) async fn after(&self, number: u64) -> EventsResponse {
        let mut last = self.last.subscribe();
        // None within the time is an answer, too.
        let _ = timeout(WAIT_MAX, last.wait_for(|last| *last > number)).await;
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        EventsResponse { events: held.iter().filter(|event| event.number > number).copied().collect() }
    }
}

/// Reads `after=NUMBER`, without which all events are meant.
pub(super) fn parse_query(query: Option<&str>) -> Result<u64, ApiError> {
    let value = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("after="));
    let Some(value) = value else { return Ok(0) };
    value.parse().map_err(|_| ApiError::bad_request(format!("after={value} is no number of an event")))
}

const HELD_MAX: usize = 64;

/// Less than what a client or a proxy takes for a dead connection.
const WAIT_MAX: Duration = Duration::from_secs(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_missed_between_two_questions() {
        let events = Events::new();
        assert!(events.after(0).await.events.is_empty(), "after a while");
        events.add(GuestEventKind::Created);
        events.add(GuestEventKind::Resumed);
        let kinds = |response: EventsResponse| response.events.iter().map(|event| event.event).collect::<Vec<_>>();
        assert_eq!(kinds(events.after(0).await), [GuestEventKind::Created, GuestEventKind::Resumed]);
        assert_eq!(kinds(events.after(1).await), [GuestEventKind::Resumed]);
        let (waited, ()) = tokio::join!(events.after(2), async { events.add(GuestEventKind::Forked) });
        assert_eq!(kinds(waited), [GuestEventKind::Forked]);
        for _ in 0..100 {
            events.add(GuestEventKind::Continued);
        }
        assert_eq!(events.after(3).await.events.len(), HELD_MAX);
    }

    #[test]
    fn the_number_is_read_from_the_query() {
        assert_eq!(parse_query(None).unwrap(), 0);
        assert_eq!(parse_query(Some("x=1&after=7")).unwrap(), 7);
        assert!(parse_query(Some("after=-1")).is_err());
    }
}
