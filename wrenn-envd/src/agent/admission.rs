//! Whose connections are served, and how many.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Host,
    /// Somebody in the guest, or whom the guest lets in.
    Guest,
}

/// Keeps whoever is in the guest from taking all of the agent's descriptors and memory: the host has to come through, to
/// run, freeze and pause.
#[derive(Debug)]
pub(super) struct Admission {
    /// Where the host's connections come from; nobody in the guest can have that address but root. `None`: from anywhere.
    host: Option<IpAddr>,
    guests: Arc<Semaphore>,
    /// Requests that are read before it is known whether their sender may give them, by who is at the other end.
    unproven: [Arc<Semaphore>; 2],
}

/// A connection that is served until this is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) peer: Peer,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Admission {
    pub(super) fn new(host: Option<IpAddr>) -> Self {
        let unproven = [(); 2].map(|()| Arc::new(Semaphore::new(UNPROVEN_MAX)));
        Self { host, guests: Arc::new(Semaphore::new(GUESTS_MAX)), unproven }
    }

    /// `None` where there are too many already.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Admitted> {
        match self.host {
            Some(host) if host != address => {
                let permit = self.guests.clone().try_acquire_owned().ok()?;
                Some(Admitted { peer: Peer::Guest, _permit: Some(permit) })
            }
            _ => Some(Admitted { peer: Peer::Host, _permit: None }),
        }
    }

    /// Room for a request that is read on trust; `None` where there is none.
    pub(super) fn trust(&self, peer: Peer) -> Option<OwnedSemaphorePermit> {
        let [host, guest] = &self.unproven;
        let semaphore = if peer == Peer::Host { host } else { guest };
        semaphore.clone().try_acquire_owned().ok()
    }
}

/// Connections from within the guest.
const GUESTS_MAX: usize = 64;

/// Each may take a whole body's memory for as long as a body may take.
const UNPROVEN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_host_comes_through_whoever_else_is_there() {
        let (host, guest) = (IpAddr::V4(crate::protocol::TAP_ADDRESS), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let admission = Admission::new(Some(host));
        let mut held: Vec<_> = (0..GUESTS_MAX).map(|_| admission.admit(guest).unwrap()).collect();
        assert!(held.iter().all(|admitted| admitted.peer == Peer::Guest) && admission.admit(guest).is_none());
        assert!((0..10_000).all(|_| admission.admit(host).is_some_and(|admitted| admitted.peer == Peer::Host)));
        held.pop();
        assert!(admission.admit(guest).is_some());
        let trusted: Vec<_> = (0..UNPROVEN_MAX).map(|_| admission.trust(Peer::Guest).unwrap()).collect();
        assert!(admission.trust(Peer::Guest).is_none() && admission.trust(Peer::Host).is_some());
        drop(trusted);
        assert!(admission.trust(Peer::Guest).is_some());
    }

    #[test]
    fn without_a_host_everybody_is_it() {
        let admission = Admission::new(None);
        let all: Vec<_> = (0..1000).map(|_| admission.admit(Ipv4Addr::LOCALHOST.into()).unwrap()).collect();
        assert!(all.iter().all(|admitted| admitted.peer == Peer::Host));
    }
}
