//! The packet socket of a slot, which sees a guest's first packets, and sends what was made by hand.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use crate::rules::{LOOPBACK_INDEX, MARK};
use crate::slot::GUEST_LINK;
use crate::sys;

/// A packet socket for both versions of IP. The kernel waits for all processors while one is closed, some 40 ms, so that is
/// done on a thread of its own.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: Option<OwnedFd>,
    tap: u32,
}

impl PacketSocket {
    /// Opens one in the calling thread's namespace, which sees each SYN and each echo request that comes by `tap`, those of
    /// IPv6 if the guest has that.
    pub(crate) fn open(tap: u32, has_ipv6: bool) -> io::Result<Self> {
        // Nothing is seen before the filter is there.
        let opened =
            socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        // What it sends by the loopback is the guest's; what it sends by the tap is asked for no mark.
        setsockopt(&opened, sockopt::Mark, &MARK)?;
        sys::watch_link(&opened, tap, &filter(has_ipv6))?;
        Ok(Self { socket: Some(opened), tap })
    }

    pub(crate) fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.socket()?, packet)?)
    }

    /// Sends a packet, which begins with its IP header, to the guest.
    pub(crate) fn send_to_guest(&self, packet: &[u8]) -> io::Result<()> {
        self.send(self.tap, GUEST_LINK, packet)
    }

    /// Sends a packet of the guest's, which begins with its IP header, to the slot's kernel, as one that is marked.
    pub(crate) fn send_to_kernel(&self, packet: &[u8]) -> io::Result<()> {
        self.send(LOOPBACK_INDEX, LOOPBACK_LINK, packet)
    }

    fn send(&self, link: u32, neighbour: [u8; 6], packet: &[u8]) -> io::Result<()> {
        let send = || sys::send_by_link(self.socket()?, link, neighbour, packet);
        match send() {
            // It may have yet to tell that the tap was down for a while, which it does once.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => send(),
            sent => sent,
        }
    }

    fn socket(&self) -> io::Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for PacketSocket {
    fn drop(&mut self) {
        let socket = self.socket.take();
        // Where there can be no more threads, this one waits.
        std::thread::Builder::new().name("wrenn-net-close".to_owned()).spawn(move || drop(socket)).ok();
    }
}

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
/// The loopback has none.
const LOOPBACK_LINK: [u8; 6] = [0; 6];

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
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};

    use super::*;
    use crate::packet::Syn;

    #[test]
    fn first_packets_are_seen_of_the_versions_that_the_guest_has_and_no_others() {
        let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
        for (has_ipv6, seen) in [(false, &[v4][..]), (true, &[v4, v6])] {
            let socket = match PacketSocket::open(LOOPBACK_INDEX, has_ipv6) {
                Ok(socket) => socket,
                Err(error) => return println!("skipped: first_packets_are_seen: {error}"),
            };
            // Answers to what is sent are no first packets, and neither is what is sent later.
            let listeners = [v4, v6].map(|address| TcpListener::bind((address, 0)).and_then(|it| it.local_addr()));
            let Ok(listeners) = listeners.into_iter().collect::<io::Result<Vec<_>>>() else {
                return println!("skipped: first_packets_are_seen: this host has no IPv6");
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
