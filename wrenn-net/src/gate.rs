//! The sockets inside a slot's namespace by which a guest's packets come to this program.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt, socket, sockopt,
};

use crate::packet_socket::PacketSocket;
use crate::rules::{Ports, loopback};

/// What a guest's connections and datagrams come through: sockets in its slot's namespace, which
/// [`Egress`](crate::Egress) serves.
#[derive(Debug)]
pub struct Gate {
    /// Sees each SYN and each echo request of the guest's.
    pub(crate) packets: PacketSocket,
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

fn transparent(kind: SockType, like: IpAddr) -> io::Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    // IPv6's own option is the same one.
    setsockopt(&socket, sockopt::IpTransparent, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(loopback(like), 0)))?;
    Ok(socket)
}

/// Each connection in it has been dialled, or is about to tell a name.
const BACKLOG: i32 = 1024;
