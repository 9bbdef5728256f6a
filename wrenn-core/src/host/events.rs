//! What happens to a host's sandboxes, as it happens.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::host::handle::Host;
use crate::network::refusals::NetworkRefusal;
use crate::sandbox::event::HostEvent;

/// A listener to what happens to the sandboxes of a host, made by [`Host::events`].
///
/// ```no_run
/// # async fn demo(host: wrenn_core::Host) {
/// let mut events = host.events();
/// while let Some(event) = events.next().await {
///     match event {
///         Ok(event) => println!("{}: {:?}", event.sandbox, event.kind),
///         Err(missed) => eprintln!("{missed}"),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct HostEvents(broadcast::Receiver<HostEvent>);

/// The listener was too slow, and missed some events. [`Host::sandboxes`] tells how things are now.
///
/// ```
/// let missed = wrenn_core::Missed { count: 7 };
/// assert!(missed.to_string().starts_with("7 events were missed"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} events were missed: ask sooner, and look at `Host::sandboxes` for how things are now")]
pub struct Missed {
    /// How many events were missed.
    pub count: u64,
}

impl Host {
    /// Tells of everything that happens to the sandboxes of this program from now on: created, resumed, forked,
    /// snapshotted, expired, paused, woken by a connection, and ended with the reason.
    ///
    /// ```no_run
    /// # async fn demo(host: wrenn_core::Host) {
    /// let mut events = host.events();
    /// while let Some(event) = events.next().await {
    ///     println!("{event:?}");
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn events(&self) -> HostEvents {
        HostEvents(self.0.events.listen())
    }
}

/// A listener to what the sandboxes of a host are refused by their network policies, made by [`Host::refusals`].
///
/// ```no_run
/// # async fn demo(host: wrenn_core::Host) {
/// let mut refusals = host.refusals();
/// while let Some(refusal) = refusals.next().await {
///     println!("{refusal:?}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct NetworkRefusals(broadcast::Receiver<NetworkRefusal>);

impl Host {
    /// Tells of everything that a sandbox of this program wants to reach from now on, and is refused by its
    /// [`NetworkPolicy`](crate::NetworkPolicy).
    #[must_use]
    pub fn refusals(&self) -> NetworkRefusals {
        NetworkRefusals(self.0.site.network.refusals.listen())
    }
}

impl NetworkRefusals {
    /// Waits for the next refusal; `None` once the host and all of its sandboxes are gone.
    ///
    /// # Errors
    /// [`Missed`], once, where more than 1024 were waiting to be read.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Result<NetworkRefusal, Missed>> {
        next(&mut self.0).await
    }
}

async fn next<T: Clone>(receiver: &mut broadcast::Receiver<T>) -> Option<Result<T, Missed>> {
    match receiver.recv().await {
        Ok(event) => Some(Ok(event)),
        Err(RecvError::Lagged(count)) => Some(Err(Missed { count })),
        Err(RecvError::Closed) => None,
    }
}

impl HostEvents {
    /// Waits for the next event; `None` once the host and all of its sandboxes are gone.
    ///
    /// # Errors
    /// [`Missed`], once, where more than 1024 events were waiting to be read. The next call gives the oldest event that
    /// is still kept.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub async fn next(&mut self) -> Option<Result<HostEvent, Missed>> {
        next(&mut self.0).await
    }
}
