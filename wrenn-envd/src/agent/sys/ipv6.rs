//! An interface's IPv6 address and routes.

use std::{
    fs, io,
    net::{Ipv6Addr, UdpSocket},
    os::fd::AsRawFd,
};

use super::check::check;

/// Gives an interface an IPv6 address.
pub(in crate::agent) fn add_address_v6(interface: &str, address: Ipv6Addr, prefix_length: u8) -> io::Result<()> {
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: prefix_length.into(),
        ifr6_ifindex: index_of(interface)?,
    };
    let socket = socket()?;
    // SAFETY: SIOCSIFADDR of an IPv6 socket reads an `in6_ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) })
}

/// Sends to `gateway`, by an interface that is up, everything of IPv6 that has no nearer route.
pub(in crate::agent) fn add_default_route_v6(interface: &str, gateway: Ipv6Addr) -> io::Result<()> {
    /// `struct in6_rtmsg` of `linux/ipv6_route.h`.
    #[repr(C)]
    #[derive(Default)]
    struct RouteMessage {
        destination: [u8; 16],
        source: [u8; 16],
        gateway: [u8; 16],
        kind: u32,
        destination_length: u16,
        source_length: u16,
        metric: u32,
        info: libc::c_ulong,
        flags: u32,
        interface: libc::c_int,
    }

    let route = RouteMessage {
        gateway: gateway.octets(),
        metric: METRIC,
        flags: u32::from(libc::RTF_UP | libc::RTF_GATEWAY),
        interface: index_of(interface)?,
        ..RouteMessage::default()
    };
    let socket = socket()?;
    // SAFETY: SIOCADDRT of an IPv6 socket reads an `in6_rtmsg`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) })
}

fn socket() -> io::Result<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
}

fn index_of(interface: &str) -> io::Result<libc::c_int> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// That of `ip -6 route add`.
const METRIC: u32 = 1024;
