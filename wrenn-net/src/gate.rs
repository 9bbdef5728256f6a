//! The sockets inside a slot's namespace by which a guest's packets come to this program.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, getsockname, listen,
    sendto, setsockopt, socket, sockopt,
};

use crate::packet_socket::PacketSocket;
use crate::rules::{MARK, Ports, loopback};
use crate::sys;

/// What a guest's connections and datagrams come through: sockets in its slot's namespace, which
/// [`Egress`](crate::Egress) serves.
#[derive(Debug)]
pub struct Gate {
    pub(crate) v4: Doors,
    /// `None` where the kernel has no IPv6, or not all that it takes.
    pub(crate) v6: Option<Doors>,
}

/// The sockets for one version of IP.
#[derive(Debug)]
pub(crate) struct Doors {
    inlets: Inlets,
    raw: Raw,
}

/// The sockets for what comes from the guest.
#[derive(Debug)]
pub(crate) struct Inlets {
    /// Sees each SYN and each echo request of the guest's.
    pub(crate) firsts: PacketSocket,
    /// Accepts connections to whatever address, which is the accepted socket's own.
    pub(crate) listener: TcpListener,
    /// Gets datagrams to whatever address, which comes as a control message.
    pub(crate) datagrams: OwnedFd,
}

/// Sends packets that were made by hand.
#[derive(Debug)]
pub(crate) struct Sender {
    v4: Raw,
    v6: Option<Raw>,
}

/// The sockets that such packets go out of.
#[derive(Debug)]
struct Raw {
    to_guest: OwnedFd,
    to_listener: OwnedFd,
}

impl Gate {
    /// Whether the guest has IPv6. Where it has none, [`Slot::create`](crate::Slot::create) has logged why, once.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }

    /// What comes from the guest by IPv4 and by IPv6, and what sends to it.
    pub(crate) fn apart(self) -> (Inlets, Option<Inlets>, Sender) {
        let (v6, raw_v6) = self.v6.map(|doors| (doors.inlets, doors.raw)).unzip();
        (self.v4.inlets, v6, Sender { v4: self.v4.raw, v6: raw_v6 })
    }
}

impl Doors {
    /// Makes the sockets in the calling thread's namespace, for one version of IP. `tap` is the guest's link.
    pub(crate) fn open(tap: u32, like: IpAddr) -> io::Result<Self> {
        let listener = transparent(SockType::Stream, like)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let datagrams = transparent(SockType::Datagram, like)?;
        // Nothing is seen before the filter is there.
        let firsts = socket(AddressFamily::Packet, SockType::Datagram, FLAGS, None)?;
        match like {
            IpAddr::V4(_) => {
                setsockopt(&datagrams, sockopt::Ipv4OrigDstAddr, &true)?;
                sys::watch_link(&firsts, tap, libc::ETH_P_IP, &FIRSTS_FILTER)?;
            }
            IpAddr::V6(_) => {
                setsockopt(&datagrams, sockopt::Ipv6OrigDstAddr, &true)?;
                sys::watch_link(&firsts, tap, libc::ETH_P_IPV6, &FIRSTS_FILTER_V6)?;
            }
        }
        let firsts = PacketSocket::new(firsts);
        let to_listener = raw(like)?;
        setsockopt(&to_listener, sockopt::Mark, &MARK)?;
        let raw = Raw { to_guest: raw(like)?, to_listener };
        Ok(Self { inlets: Inlets { firsts, listener: listener.into(), datagrams }, raw })
    }

    pub(crate) fn ports(&self) -> io::Result<Ports> {
        let datagrams: SockaddrStorage = getsockname(self.inlets.datagrams.as_raw_fd())?;
        let v4 = datagrams.as_sockaddr_in().map(|address| address.port());
        let udp = v4.or_else(|| datagrams.as_sockaddr_in6().map(|address| address.port()));
        Ok(Ports { tcp: self.inlets.listener.local_addr()?.port(), udp: udp.ok_or(io::ErrorKind::AddrNotAvailable)? })
    }
}

impl Sender {
    /// Sends a packet to the guest. One that does not fit into the queue is lost, as in any network.
    pub(crate) fn to_guest(&self, packet: &[u8]) {
        self.send(packet, |raw| &raw.to_guest);
    }

    /// Sends a packet of the guest's to the transparent listener.
    pub(crate) fn to_listener(&self, packet: &[u8]) {
        self.send(packet, |raw| &raw.to_listener);
    }

    /// Whether anything can be sent by IPv6.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }

    /// By the address that the packet itself has.
    fn send(&self, packet: &[u8], socket: impl FnOnce(&Raw) -> &OwnedFd) {
        let Some(address) = destination(packet) else { return };
        let Some(raw) = (if address.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }) else { return };
        let to = SockaddrStorage::from(SocketAddr::new(address, 0));
        if let Err(errno) = sendto(socket(raw).as_raw_fd(), packet, &to, MsgFlags::empty()) {
            tracing::debug!(%errno, %address, "a packet was not sent");
        }
    }
}

fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(16..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        6 => packet.get(24..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    }
}

fn family(like: IpAddr) -> AddressFamily {
    if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn transparent(kind: SockType, like: IpAddr) -> io::Result<OwnedFd> {
    let socket = socket(family(like), kind, FLAGS, None)?;
    // IPv6's own option is the same one.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(loopback(like), 0)))?;
    Ok(socket)
}

/// What is sent by it has its IP header already.
fn raw(like: IpAddr) -> io::Result<OwnedFd> {
    Ok(socket(family(like), SockType::Raw, FLAGS, SockProtocol::Raw)?)
}

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
/// Each connection in it has been dialled, or is about to tell a name.
const BACKLOG: i32 = 1024;

/// IPv4, and not a later fragment: TCP with SYN and not ACK, or ICMP's echo requests. Offsets are from the IP header.
const FIRSTS_FILTER: [libc::sock_filter; 13] = [
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
const FIRSTS_FILTER_V6: [libc::sock_filter; 10] = [
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

// Of classic BPF: Documentation/networking/filter.rst of the kernel.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_AT_INDEX: u16 = 0x50;
const INDEX_BY_HEADER: u16 = 0xb1;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
