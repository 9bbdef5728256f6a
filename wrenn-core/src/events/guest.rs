//! What has become of a guest.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use wrenn_envd::GuestEventKind;

use crate::error::{Error, Result};
use crate::sandbox::handle::Sandbox;

/// One thing that has become of a guest, as it tells its own programs and clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestEvent {
    /// Counts the events of this guest and of those that it descends from, from 1.
    pub number: u64,
    /// What happened.
    pub kind: GuestEventKind,
    /// When, by the guest's clock.
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
    /// What has become of the guest after the event of number `after`: the oldest first, and of all of them the last 64.
    /// It waits until there is one, and answers none after 50 s without.
    ///
    /// A connection, a cache or a lease that a program holds for a guest may be nobody's any more after a fork, and old
    /// after a pause; this is how a program that did not fork or pause the sandbox itself hears of it.
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
    /// [`Error::InvalidState`] where the sandbox does not run, or is paused or ends meanwhile. Ask the resumed one with the
    /// same number.
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
