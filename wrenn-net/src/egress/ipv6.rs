//! Whether the host has a way out by IPv6.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is known of the host's way out by IPv6, and since when.
#[derive(Debug, Default)]
pub(super) struct Ipv6(Mutex<Option<(Instant, bool)>>);

impl Ipv6 {
    /// Whether the host has a way to public addresses, from the calling thread's network namespace. It is looked at anew every
    /// few seconds. Nothing is sent for it.
    pub(super) fn is_there(&self) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *known {
            Some((at, is_there)) if at.elapsed() < FRESH => is_there,
            _ => {
                let is_there = source().is_ok_and(|from| !is_of_link(from));
                *known = Some((Instant::now(), is_there));
                is_there
            }
        }
    }
}

/// The address that the host would send from. A datagram socket that is connected sends nothing for that.
fn source() -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(SOMEWHERE.into(), DISCARD_PORT))?;
    Ok(socket.local_addr()?.ip())
}

/// Whether no answer could come to an address: it is on the loopback, or on a link (fe80::/10).
fn is_of_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unspecified() || address.segments()[0] & 0xffc0 == 0xfe80
        }
    }
}

/// A root server of DNS (a.root-servers.net), which is not asked anything.
const SOMEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30);
const DISCARD_PORT: u16 = 9;
const FRESH: Duration = Duration::from_secs(5);
