//! A socket of the host's own, by which echo requests go out and what answers them comes in.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recvfrom,
    recvmsg, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::packet::{Echo, EchoMessage, Unreachable, payload_of};
use crate::sys;

/// A socket for echo requests to one address.
#[derive(Debug)]
pub(super) struct EchoSocket {
    socket: AsyncFd<OwnedFd>,
    to: IpAddr,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The kernel gives it an identifier, and brings it what answers that (`ping_group_range` in icmp(7)).
    Unprivileged,
    /// It gets every message of its address, and knows by the identifier which are its own.
    Raw { identifier: u16 },
}

/// What has come of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Reply { sequence: u16, payload: Vec<u8> },
    Unreachable { sequence: u16, why: Unreachable },
}

impl EchoSocket {
    /// An unprivileged one, or where this program may have none, a raw one.
    pub(super) fn connect(to: IpAddr) -> io::Result<Self> {
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let open = |kind| socket(family, kind, FLAGS, protocol);
        let (socket, kind) = match open(SockType::Datagram) {
            Ok(socket) => (socket, Kind::Unprivileged),
            Err(_) => (open(SockType::Raw)?, Kind::Raw { identifier: NEXT_IDENTIFIER.fetch_add(1, Relaxed) }),
        };
        // So that it is told which request an error is about.
        match to {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
        Ok(Self { socket: sys::watch(socket)?, to, kind })
    }

    /// Sends a request. One that does not fit into the queue is lost, as in any network.
    pub(super) fn send(&self, echo: &Echo) -> io::Result<()> {
        let identifier = match self.kind {
            Kind::Unprivileged => 0,
            Kind::Raw { identifier } => identifier,
        };
        let message = echo.message(identifier);
        let send = || nix::sys::socket::send(self.socket.as_raw_fd(), &message, MsgFlags::MSG_DONTWAIT);
        // The first error may be that of an earlier request, of which `hear` tells.
        match send().or_else(|_| send()) {
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for what comes of a request.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub(super) async fn hear(&self) -> io::Result<Heard> {
        loop {
            let mut ready = self.socket.ready(Interest::READABLE | Interest::ERROR).await?;
            match ready.try_io(|socket| self.next(socket.get_ref())) {
                Ok(Ok(Some(heard))) => return Ok(heard),
                Ok(Ok(None)) | Err(_) => {}
                // It is in the queue of errors, too, and that tells more of it.
                Ok(Err(_)) => ready.clear_ready(),
            }
        }
    }

    /// `None` for what is about no request of this socket.
    fn next(&self, socket: &OwnedFd) -> io::Result<Option<Heard>> {
        match self.next_error(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.next_reply(socket),
            other => other,
        }
    }

    fn next_error(&self, socket: &OwnedFd) -> io::Result<Option<Heard>> {
        let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let mut quoted = [0; QUOTED_BYTES_MAX];
        let (len, why) = {
            let mut pieces = [IoSliceMut::new(&mut quoted)];
            let flags = MsgFlags::MSG_ERRQUEUE;
            let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
            let why = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4RecvErr(error, _) => why(&error, UNREACHABLE, &PROHIBITED),
                ControlMessageOwned::Ipv6RecvErr(error, _) => why(&error, UNREACHABLE_V6, &PROHIBITED_V6),
                _ => None,
            });
            (message.bytes, why)
        };
        let request = quoted.get(..len).and_then(|message| EchoMessage::read_request(message, self.to));
        let request = request.filter(|request| self.is_own(request));
        Ok(request.zip(why).map(|(request, why)| Heard::Unreachable { sequence: request.sequence, why }))
    }

    fn next_reply(&self, socket: &OwnedFd) -> io::Result<Option<Heard>> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let (len, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
        let bytes = buffer.get(..len).filter(|_| from.and_then(|from| ip_of(&from)) == Some(self.to));
        let message = match (&self.kind, self.to) {
            // With its IP header.
            (Kind::Raw { .. }, IpAddr::V4(_)) => bytes.and_then(payload_of),
            _ => bytes,
        };
        let reply = message.and_then(|message| EchoMessage::read_reply(message, self.to));
        let reply = reply.filter(|reply| self.is_own(reply));
        Ok(reply.map(|reply| Heard::Reply { sequence: reply.sequence, payload: reply.payload.to_vec() }))
    }

    fn is_own(&self, message: &EchoMessage<'_>) -> bool {
        match self.kind {
            Kind::Unprivileged => true,
            Kind::Raw { identifier } => message.identifier == identifier,
        }
    }
}

/// What an error of a socket says of the way to its address.
pub(super) fn why_not(error: &io::Error) -> Unreachable {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH) => Unreachable::Network,
        Some(libc::EACCES | libc::EPERM) => Unreachable::Prohibited,
        _ => Unreachable::Host,
    }
}

/// What a message says that came instead of a reply; `None` if it says that the next request will be in pieces.
/// `unreachable` and `prohibited` are the type and the codes that say so.
fn why(error: &libc::sock_extended_err, unreachable: u8, prohibited: &[u8]) -> Option<Unreachable> {
    match i32::try_from(error.ee_errno).ok()? {
        libc::EMSGSIZE => None,
        _ if error.ee_type == unreachable && prohibited.contains(&error.ee_code) => Some(Unreachable::Prohibited),
        errno => Some(why_not(&io::Error::from_raw_os_error(errno))),
    }
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

/// Of raw sockets: each has one that no other of this program has had lately, and that those of other programs hardly have.
static NEXT_IDENTIFIER: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
/// More than an Ethernet frame has: what is longer does not go to a guest.
const MESSAGE_BYTES_MAX: usize = 2048;
/// The head of a request.
const QUOTED_BYTES_MAX: usize = 64;
// RFC 792 and 1812: the network, the host, and everything behind a filter is prohibited.
const UNREACHABLE: u8 = 3;
const PROHIBITED: [u8; 3] = [9, 10, 13];
// RFC 4443: prohibited, by a policy for sources, and by a route.
const UNREACHABLE_V6: u8 = 1;
const PROHIBITED_V6: [u8; 3] = [1, 5, 6];
