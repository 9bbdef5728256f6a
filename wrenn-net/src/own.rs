//! The addresses of the host that this program runs on.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// Whether an address is one of the host's links. They are read anew every few seconds; where they cannot be read, none is.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    match &*known {
        Some((at, addresses)) if at.elapsed() < FRESH => addresses.contains(&address),
        _ => {
            let addresses = read();
            let is_own = addresses.contains(&address);
            *known = Some((Instant::now(), addresses));
            is_own
        }
    }
}

fn read() -> HashSet<IpAddr> {
    let links = getifaddrs().inspect_err(|errno| tracing::warn!(%errno, "the host's addresses cannot be read"));
    let addresses = links.into_iter().flatten().filter_map(|link| link.address);
    let as_ip = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    addresses.filter_map(as_ip).collect()
}

static KNOWN: Mutex<Option<(Instant, HashSet<IpAddr>)>> = Mutex::new(None);
const FRESH: Duration = Duration::from_secs(5);
