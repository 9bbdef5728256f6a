//! The events of a guest: it was created, resumed, forked, or stood still.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use wrenn_envd::GuestEventKind;

use crate::error::{Error, Result};
use crate::sandbox::handle::Sandbox;

/// One event of a guest, such as a resume or a fork, as the guest's agent tells it to programs inside and outside.
///
/// ```
/// use wrenn_core::{GuestEvent, GuestEventKind};
///
/// fn must_reconnect(events: &[GuestEvent]) -> bool {
///     events.iter().any(|event| matches!(event.kind, GuestEventKind::Forked | GuestEventKind::Resumed))
/// }
/// assert!(!must_reconnect(&[]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestEvent {
    /// The number of the event. The events of a guest and of the guests that it descends from are counted from 1.
    pub number: u64,
    /// What happened.
    pub kind: GuestEventKind,
    /// When it happened, by the guest's clock.
    pub at: SystemTime,
}

impl From<wrenn_envd::GuestEvent> for GuestEvent {
    fn from(event: wrenn_envd::GuestEvent) -> Self {
        // The agent writes no time before 1970.
        let since = Duration::from_nanos(event.timestamp.unix_nanos().try_into().unwrap_or(0));
        Self { number: event.number, kind: event.event, at: UNIX_EPOCH + since }
    }
}

impl Sandbox {
    /// Returns the events of the guest after the event with the number `after`, the oldest first. The guest keeps the
    /// last 64 events. The call waits until there is an event, and returns an empty list after 50 s without one.
    ///
    /// A program that holds a connection, a cache or a lease for a guest learns from these events that the guest was
    /// forked, or paused for some time, by another program.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// let mut last = 0;
    /// loop {
    ///     for event in sandbox.guest_events(last).await? {
    ///         println!("{}: {:?}", event.number, event.kind);
    ///         last = event.number;
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the sandbox does not run, or is paused or ends in the meantime: ask the resumed
    /// sandbox with the same number. [`Error::Agent`] where the guest does not answer in time.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing: ask again with the same number.
    pub async fn guest_events(&self, after: u64) -> Result<Vec<GuestEvent>> {
        let ask = async {
            let events = self.agent().events_after(after).await.map_err(Error::agent("ask for its events"))?;
            Ok(events.into_iter().map(GuestEvent::from).collect())
        };
        self.while_running("be asked for its events", ask).await
    }
}
