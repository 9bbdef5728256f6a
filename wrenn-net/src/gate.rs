//! The sockets inside a slot's namespace by which a guest's packets come to this program.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, getsockname, listen, sendto,
    setsockopt, socket, sockopt,
};

use crate::packet_socket::PacketSocket;
use crate::rules::{LISTEN_ADDRESS, MARK, Ports};
use crate::sys;

/// What a guest's connections and datagrams come through: sockets in its slot's namespace, which
/// [`Egress`](crate::Egress) serves.
#[derive(Debug)]
pub struct Gate {
    /// Sees each SYN and each echo request of the guest's.
    pub(crate) firsts: PacketSocket,
    /// Accepts connections to whatever address, which is the accepted socket's own.
    pub(crate) listener: TcpListener,
    /// Gets datagrams to whatever address, which comes as a control message.
    pub(crate) datagrams: OwnedFd,
    pub(crate) sender: Sender,
}

/// Sends packets that were made by hand.
#[derive(Debug)]
pub(crate) struct Sender {
    to_guest: OwnedFd,
    to_listener: OwnedFd,
}

impl Gate {
    /// Makes the sockets in the calling thread's namespace. `tap` is the guest's link.
    pub(crate) fn open(tap: &str) -> io::Result<Self> {
        let listener = transparent(SockType::Stream)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        let datagrams = transparent(SockType::Datagram)?;
        setsockopt(&datagrams, sockopt::Ipv4OrigDstAddr, &true)?;
        // Nothing is seen before the filter is there.
        let firsts = socket(AddressFamily::Packet, SockType::Datagram, FLAGS, None)?;
        sys::watch_link(&firsts, if_nametoindex(tap)?, &FIRSTS_FILTER)?;
        let firsts = PacketSocket::new(firsts);
        let to_listener = raw()?;
        setsockopt(&to_listener, sockopt::Mark, &MARK)?;
        let sender = Sender { to_guest: raw()?, to_listener };
        Ok(Self { firsts, listener: listener.into(), datagrams, sender })
    }

    pub(crate) fn ports(&self) -> io::Result<Ports> {
        let datagrams: SockaddrIn = getsockname(self.datagrams.as_raw_fd())?;
        Ok(Ports { tcp: self.listener.local_addr()?.port(), udp: datagrams.port() })
    }
}

impl Sender {
    /// Sends a packet to the guest. One that does not fit into the queue is lost, as in any network.
    pub(crate) fn to_guest(&self, packet: &[u8]) {
        send(&self.to_guest, packet);
    }

    /// Sends a packet of the guest's to the transparent listener.
    pub(crate) fn to_listener(&self, packet: &[u8]) {
        send(&self.to_listener, packet);
    }
}

/// By the address that the packet itself has.
fn send(socket: &OwnedFd, packet: &[u8]) {
    let address = packet.get(16..20).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let Some(address) = address.map(Ipv4Addr::from) else { return };
    let to = SockaddrIn::from(SocketAddrV4::new(address, 0));
    if let Err(errno) = sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty()) {
        tracing::debug!(%errno, %address, "a packet was not sent");
    }
}

fn transparent(kind: SockType) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Inet, kind, FLAGS, None)?;
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(LISTEN_ADDRESS, 0)))?;
    Ok(socket)
}

/// What is sent by it has its IP header already.
fn raw() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Raw, FLAGS, SockProtocol::Raw)?)
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

const fn step(code: u16, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

// IANA's protocol numbers, and RFC 792.
const TCP: u32 = 6;
const ICMP: u32 = 1;
const ECHO_REQUEST: u32 = 8;

// Of classic BPF: Documentation/networking/filter.rst of the kernel.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE_AT_INDEX: u16 = 0x50;
const INDEX_BY_HEADER: u16 = 0xb1;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
