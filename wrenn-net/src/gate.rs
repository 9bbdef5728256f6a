//! The sockets inside a slot's namespace by which a guest's packets come to this program, and its answers go.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket, sockopt,
};

use crate::packet_socket::PacketSocket;
use crate::rules::{MARK, Ports, loopback};
use crate::sys;

/// What a guest's connections and datagrams come through: sockets in its slot's namespace, which
/// [`Egress`](crate::Egress) serves.
#[derive(Debug)]
pub struct Gate {
    /// Sees each SYN and each echo request of the guest's, and sends what was made by hand.
    pub(crate) packets: PacketSocket,
    /// The guest's link.
    pub(crate) tap: u32,
    pub(crate) v4: Inlets,
    /// `None` where the kernel has no IPv6, or not all that it takes.
    pub(crate) v6: Option<Inlets>,
}

/// The sockets for what comes from the guest by one version of IP.
#[derive(Debug)]
pub(crate) struct Inlets {
    /// Accepts connections to whatever address, which is the accepted socket's own.
    pub(crate) listener: TcpListener,
    /// Gets datagrams to whatever address, which comes as a control message.
    pub(crate) datagrams: OwnedFd,
}

impl Gate {
    /// Whether the guest has IPv6. Where it has none, [`Slot::create`](crate::Slot::create) has logged why, once.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }
}

impl Inlets {
    /// Makes the sockets in the calling thread's namespace.
    pub(crate) fn open(like: IpAddr) -> io::Result<Self> {
        let listener = transparent(SockType::Stream, like)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let datagrams = transparent(SockType::Datagram, like)?;
        match like {
            IpAddr::V4(_) => setsockopt(&datagrams, sockopt::Ipv4OrigDstAddr, &true)?,
            IpAddr::V6(_) => setsockopt(&datagrams, sockopt::Ipv6OrigDstAddr, &true)?,
        }
        Ok(Self { listener: listener.into(), datagrams })
    }

    pub(crate) fn ports(&self) -> io::Result<Ports> {
        let datagrams: SockaddrStorage = getsockname(self.datagrams.as_raw_fd())?;
        let v4 = datagrams.as_sockaddr_in().map(|address| address.port());
        let udp = v4.or_else(|| datagrams.as_sockaddr_in6().map(|address| address.port()));
        Ok(Ports { tcp: self.listener.local_addr()?.port(), udp: udp.ok_or(io::ErrorKind::AddrNotAvailable)? })
    }
}

/// Makes the packet socket in the calling thread's namespace. It sees what comes by `tap`, and that of IPv6 if the guest has
/// that. What it sends is marked.
pub(crate) fn watch(tap: u32, has_ipv6: bool) -> io::Result<PacketSocket> {
    // Nothing is seen before the filter is there.
    let socket = socket(AddressFamily::Packet, SockType::Datagram, FLAGS, None)?;
    setsockopt(&socket, sockopt::Mark, &MARK)?;
    sys::watch_link(&socket, tap, &filter(has_ipv6))?;
    Ok(PacketSocket::new(socket))
}

fn transparent(kind: SockType, like: IpAddr) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, FLAGS, None)?;
    // IPv6's own option is the same one.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(loopback(like), 0)))?;
    Ok(socket)
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
/// Each connection in it has been dialled, or is about to tell a name.
const BACKLOG: i32 = 1024;

/// Lets through what begins something, by the version of IP that a frame says it has.
fn filter(has_ipv6: bool) -> Vec<libc::sock_filter> {
    let mut filter = vec![step(LOAD_HALF, PROTOCOL), jump(IF_EQUAL, ETHERTYPE_IPV4, 0, FIRSTS.len().to_le_bytes()[0])];
    filter.extend(FIRSTS);
    if has_ipv6 {
        filter.push(jump(IF_EQUAL, ETHERTYPE_IPV6, 0, FIRSTS_V6.len().to_le_bytes()[0]));
        filter.extend(FIRSTS_V6);
    }
    filter.push(step(RETURN, 0));
    filter
}

/// IPv4, and not a later fragment: TCP with SYN and not ACK, or ICMP's echo requests. Offsets are from the IP header.
const FIRSTS: [libc::sock_filter; 13] = [
    step(LOAD_HALF, 6),
    jump(IF_ANY_BIT, 0x1fff, 10, 0),
    step(INDEX_BY_HEADER, 0),
    step(LOAD_BYTE, 9),
    jump(IF_EQUAL, TCP, 0, 3),
    step(LOAD_BYTE_AT_INDEX, 13),
    step(AND, 0x12),
    jump(IF_EQUAL, 0x02, 3, 4),
    jump(IF_EQUAL, ICMP, 0, 3),
    step(LOAD_BYTE_AT_INDEX, 0),
    jump(IF_EQUAL, ECHO_REQUEST, 0, 1),
    step(RETURN, 0xffff),
    step(RETURN, 0),
];

/// The same of IPv6, whose header has 40 bytes. What has extension headers is not seen.
const FIRSTS_V6: [libc::sock_filter; 10] = [
    step(LOAD_BYTE, 6),
    jump(IF_EQUAL, TCP, 0, 3),
    step(LOAD_BYTE, 40 + 13),
    step(AND, 0x12),
    jump(IF_EQUAL, 0x02, 3, 4),
    jump(IF_EQUAL, ICMPV6, 0, 3),
    step(LOAD_BYTE, 40),
    jump(IF_EQUAL, ECHO_REQUEST_V6, 0, 1),
    step(RETURN, 0xffff),
    step(RETURN, 0),
];

const fn step(code: u16, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

// IANA's protocol numbers, and RFC 792 and 4443.
const TCP: u32 = 6;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
const ECHO_REQUEST: u32 = 8;
const ECHO_REQUEST_V6: u32 = 128;
// IEEE 802's numbers of protocols.
const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;

// Of classic BPF: Documentation/networking/filter.rst of the kernel.
/// What a frame says that it carries: `SKF_AD_OFF + SKF_AD_PROTOCOL`.
const PROTOCOL: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL).cast_unsigned();
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_AT_INDEX: u16 = 0x50;
const INDEX_BY_HEADER: u16 = 0xb1;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

    use super::*;
    use crate::packet::Syn;
    use crate::rules::LOOPBACK_INDEX;

    #[test]
    fn first_packets_are_seen_of_the_versions_that_the_guest_has_and_no_others() {
        const TEST: &str = "first_packets_are_seen_of_the_versions_that_the_guest_has_and_no_others";
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        for (has_ipv6, seen) in [(false, &[v4][..]), (true, &[v4, v6])] {
            let socket = match watch(LOOPBACK_INDEX, has_ipv6) {
                Ok(socket) => socket,
                Err(error) => return println!("skipped: {TEST}: {error}"),
            };
            // Nobody listens there any more: what is sent is a SYN, and the answer is none.
            let listeners = [v4, v6].map(|address| TcpListener::bind((address, 0)).and_then(|it| it.local_addr()));
            let Ok(listeners) = listeners.into_iter().collect::<io::Result<Vec<_>>>() else {
                return println!("skipped: {TEST}: this host has no IPv6");
            };
            listeners.iter().for_each(|closed| assert!(TcpStream::connect(closed).is_err(), "{closed}"));
            let mut buffer = [0; 1500];
            let packets = std::iter::from_fn(|| socket.read(&mut buffer).ok().map(|len| Syn::read(&buffer[..len])));
            let to: Vec<IpAddr> =
                packets.flatten().filter(|syn| listeners.contains(&syn.to)).map(|syn| syn.to.ip()).collect();
            assert_eq!(to, seen, "{has_ipv6}");
        }
    }
}
