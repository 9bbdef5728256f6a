//! A guest: a kernel's network of its own, whose link is a slot's tap. Frames are carried from tap to tap by two threads.
#![expect(unsafe_code, reason = "ioctl and a zeroed ifreq")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, connect,
    sendto, setsockopt, socket, sockopt,
};
use rtnetlink::LinkUnspec;
use wrenn_net::{GUEST_ADDRESS, GUEST_ADDRESS_V6, HOST_ADDRESS, HOST_ADDRESS_V6, PREFIX_LEN, PREFIX_LEN_V6, Slot, Tap};

use super::{Namespace, configure, default_route, quiet_ipv6, up};

/// `wrenn_net::GUEST_MAC`.
const GUEST_LINK: [u8; 6] = [0x02, 0x57, 0x52, 0x45, 0x4e, 0x15];

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);

pub(crate) struct Guest {
    pub(crate) namespace: Namespace,
    pub(crate) slot: Slot,
    eth0: Arc<File>,
    stop: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl Guest {
    pub(crate) fn plug(slot: Slot, tap: Tap) -> Self {
        let namespace = Namespace::new();
        let eth0 = Arc::new(namespace.run(|| {
            let eth0 = eth0();
            quiet_ipv6("eth0");
            configure(async |netlink| {
                up(&netlink, "lo", &[]).await;
                // Its slot knows it by that.
                let named = LinkUnspec::new_with_name("eth0").address(GUEST_LINK.to_vec()).build();
                netlink.link().set(named).execute().await.unwrap();
                let addresses = [(GUEST_ADDRESS.into(), PREFIX_LEN), (GUEST_ADDRESS_V6.into(), PREFIX_LEN_V6)];
                up(&netlink, "eth0", &addresses).await;
                default_route(&netlink, HOST_ADDRESS.into()).await;
                default_route(&netlink, HOST_ADDRESS_V6.into()).await;
            });
            eth0
        }));
        let mut guest = Self { namespace, slot, eth0, stop: Arc::default(), carriers: Vec::new() };
        guest.carry(tap);
        guest
    }

    /// Takes the guest from its slot, as if its machine stood still.
    pub(crate) fn unplug(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            carrier.join().unwrap();
        }
    }

    pub(crate) fn plug_into(&mut self, slot: Slot, tap: Tap) {
        self.slot = slot;
        self.stop = Arc::default();
        self.carry(tap);
    }

    fn carry(&mut self, tap: Tap) {
        let queue = Arc::new(File::from(tap.into_queue()));
        let pairs = [(Arc::clone(&self.eth0), Arc::clone(&queue)), (queue, Arc::clone(&self.eth0))];
        self.carriers = pairs
            .map(|(from, to)| {
                let stop = Arc::clone(&self.stop);
                std::thread::spawn(move || carry(&from, &to, &stop))
            })
            .into();
    }

    /// As a program in the guest connects.
    pub(crate) async fn connect(&self, to: &str) -> io::Result<tokio::net::TcpStream> {
        let stream = self.connect_blocking(to.parse().unwrap()).await?;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }

    async fn connect_blocking(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let namespace = self.namespace.clone();
        let connect = move || namespace.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)));
        tokio::task::spawn_blocking(connect).await.unwrap()
    }

    /// A socket of the guest's for echo requests to an address, with an identifier.
    pub(crate) fn echoes(&self, to: &str, identifier: u16) -> tokio::net::UdpSocket {
        let to: IpAddr = to.parse().unwrap();
        let (family, protocol, own) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        let socket = self.namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
            let (kind, flags) = (SockType::Datagram, SockFlag::SOCK_NONBLOCK);
            let socket = socket(family, kind, flags, protocol).unwrap();
            match to {
                IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true).unwrap(),
                IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap(),
            }
            bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, identifier))).unwrap();
            connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0))).unwrap();
            socket
        });
        tokio::net::UdpSocket::from_std(socket.into()).unwrap()
    }

    /// A socket of the guest's, connected to an address.
    pub(crate) fn datagrams(&self, to: &str) -> tokio::net::UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        let own = if to.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.namespace.run(|| {
            let socket = UdpSocket::bind((own, 0)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        socket.set_nonblocking(true).unwrap();
        tokio::net::UdpSocket::from_std(socket).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.unplug();
    }
}

fn eth0() -> File {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: `ifreq` is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"eth0") {
        *to = libc::c_char::from_le_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap();
    // SAFETY: the descriptor is open, and `request` is an initialised `ifreq` that outlives the call.
    unsafe { tunsetiff(tun.as_raw_fd(), &raw const request) }.unwrap();
    tun
}

fn carry(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut frame = [0; 65_600];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(20_u8)).unwrap() == 0 {
            continue;
        }
        if let Ok(len) = from.read(&mut frame) {
            // A tap that is not up yet, or no longer, takes nothing.
            to.write_all(&frame[..len]).ok();
        }
    }
}

/// Echo requests with as many identifiers, in the calling thread's namespace.
pub(crate) fn ask_as_many(to: [u8; 4], identifiers: std::ops::Range<u16>) {
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
    for identifier in identifiers {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([169, 254, 0, 21], to, 64).icmpv4_echo_request(identifier, 1);
        builder.write_to_vec(&mut packet, b"one of many").unwrap();
        sendto(socket.as_raw_fd(), &packet, &SockaddrIn::from(SocketAddrV4::new(to.into(), 0)), MsgFlags::empty())
            .unwrap();
    }
}

/// Sends a packet as it is, in the calling thread's namespace, past that namespace's own IP: to the slot's end of the link.
pub(crate) fn send_by_hand(packet: &[u8]) {
    let socket = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::empty(), None).unwrap();
    // SAFETY: `sockaddr_ll` is plain old data, for which all zeros is a valid value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
    to.sll_protocol = u16::try_from(libc::ETH_P_IPV6).unwrap().to_be();
    to.sll_ifindex = nix::net::if_::if_nametoindex("eth0").unwrap().cast_signed();
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&[0x02, 0x57, 0x52, 0x45, 0x4e, 0x16]);
    let len = u32::try_from(size_of_val(&to)).unwrap();
    let (bytes, count) = (packet.as_ptr().cast(), packet.len());
    // SAFETY: `packet` and `to` are initialised, have these lengths, and outlive the call.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), bytes, count, 0, (&raw const to).cast(), len) };
    assert_eq!(usize::try_from(sent).unwrap(), count, "{}", io::Error::last_os_error());
}

/// SYNs of both versions of IP from many ports, half of them to what is refused, for a while. Returns how many.
pub(crate) fn flood(lasting: Duration) -> u64 {
    let raw = |family| socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
    let (v4, v6) = (raw(AddressFamily::Inet), raw(AddressFamily::Inet6));
    let (began, mut sent) = (Instant::now(), 0_u64);
    while began.elapsed() < lasting {
        let port = u16::try_from(1024 + sent % 60_000).unwrap();
        let mut packet = Vec::new();
        let is_sent = if sent % 4 < 2 {
            let to = if sent % 2 == 0 { [10, 9, 0, 7] } else { [93, 184, 216, 34] };
            let builder = PacketBuilder::ipv4([169, 254, 0, 21], to, 64).tcp(port, 80, 1, 1000).syn();
            builder.write_to_vec(&mut packet, &[]).unwrap();
            let address = SockaddrIn::from(SocketAddrV4::new(to.into(), 0));
            sendto(v4.as_raw_fd(), &packet, &address, MsgFlags::empty()).is_ok()
        } else {
            let to = if sent % 2 == 0 { super::INTERNET_V6[2] } else { super::INTERNET_V6[0] };
            let builder = PacketBuilder::ipv6(GUEST_ADDRESS_V6.octets(), to.octets(), 64).tcp(port, 80, 1, 1000).syn();
            builder.write_to_vec(&mut packet, &[]).unwrap();
            let address = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
            sendto(v6.as_raw_fd(), &packet, &address, MsgFlags::empty()).is_ok()
        };
        sent += u64::from(is_sent);
    }
    sent
}
