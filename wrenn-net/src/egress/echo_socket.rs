//! A socket of the host's own, by which echo requests go out and what answers them comes in.

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, connect, recvfrom,
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
    to: Ipv4Addr,
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
    pub(super) fn connect(to: Ipv4Addr) -> io::Result<Self> {
        let open = |kind| socket(AddressFamily::Inet, kind, FLAGS, SockProtocol::Icmp);
        let (socket, kind) = match open(SockType::Datagram) {
            Ok(socket) => (socket, Kind::Unprivileged),
            Err(_) => (open(SockType::Raw)?, Kind::Raw { identifier: NEXT_IDENTIFIER.fetch_add(1, Relaxed) }),
        };
        // So that it is told which request an error is about.
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(to, 0)))?;
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
        let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
        let mut quoted = [0; QUOTED_BYTES_MAX];
        let (len, why) = {
            let mut pieces = [IoSliceMut::new(&mut quoted)];
            let flags = MsgFlags::MSG_ERRQUEUE;
            let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
            let why = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4RecvErr(error, _) => why(&error),
                _ => None,
            });
            (message.bytes, why)
        };
        let request = quoted.get(..len).and_then(EchoMessage::read_request).filter(|request| self.is_own(request));
        Ok(request.zip(why).map(|(request, why)| Heard::Unreachable { sequence: request.sequence, why }))
    }

    fn next_reply(&self, socket: &OwnedFd) -> io::Result<Option<Heard>> {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        let (len, from) = recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer)?;
        let bytes = buffer.get(..len).filter(|_| from.is_some_and(|from| from.ip() == self.to));
        let message = match self.kind {
            Kind::Unprivileged => bytes,
            Kind::Raw { .. } => bytes.and_then(payload_of),
        };
        let reply = message.and_then(EchoMessage::read_reply).filter(|reply| self.is_own(reply));
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
fn why(error: &libc::sock_extended_err) -> Option<Unreachable> {
    match (error.ee_type, error.ee_code, i32::try_from(error.ee_errno).ok()?) {
        (_, _, libc::EMSGSIZE) => None,
        (UNREACHABLE, NETWORK_PROHIBITED | HOST_PROHIBITED | FILTERED, _) => Some(Unreachable::Prohibited),
        (_, _, errno) => Some(why_not(&io::Error::from_raw_os_error(errno))),
    }
}

/// Of raw sockets: each has one that no other of this program has had lately, and that those of other programs hardly have.
static NEXT_IDENTIFIER: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
/// More than an Ethernet frame has: what is longer does not go to a guest.
const MESSAGE_BYTES_MAX: usize = 2048;
/// The head of a request.
const QUOTED_BYTES_MAX: usize = 64;
// RFC 792 and 1812.
const UNREACHABLE: u8 = 3;
const NETWORK_PROHIBITED: u8 = 9;
const HOST_PROHIBITED: u8 = 10;
const FILTERED: u8 = 13;
