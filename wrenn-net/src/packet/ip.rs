//! What all packets have: an IP header, of either version.

use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, Ipv4Slice, Ipv6HeaderSlice, PacketBuilder, PacketBuilderStep};

/// A packet that is read, and whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole<'a> {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: IpNumber,
    /// What is behind the IP header.
    pub(super) payload: &'a [u8],
}

impl<'a> Whole<'a> {
    /// Reads a packet, which begins with its IP header. `None` if it is a piece of one, or is cut. What an IPv6 packet has
    /// behind its header is taken for its payload, be it an extension header.
    pub(super) fn read(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Slice::from_slice(packet).ok()?;
                let (from, to) = (ip.header().source_addr().into(), ip.header().destination_addr().into());
                let (protocol, payload) = (ip.payload_ip_number(), ip.payload().payload);
                (!ip.is_payload_fragmented()).then_some(Self { from, to, protocol, payload })
            }
            6 => {
                let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
                let payload = packet.get(IPV6_HEADER_BYTES..)?.get(..ip.payload_length().into())?;
                let (from, to) = (ip.source_addr().into(), ip.destination_addr().into());
                Some(Self { from, to, protocol: ip.next_header(), payload })
            }
            _ => None,
        }
    }
}

/// The IP header of a packet that is made. `None` where its ends have addresses of different versions: there is no such
/// packet.
pub(super) fn header(from: IpAddr, to: IpAddr) -> Option<PacketBuilderStep<IpHeaders>> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(PacketBuilder::ipv4(from.octets(), to.octets(), TTL)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(PacketBuilder::ipv6(from.octets(), to.octets(), TTL)),
        _ => None,
    }
}

/// How many routers a packet may pass. It passes none on its way to the guest.
pub(super) const TTL: u8 = 64;
pub(super) const IPV6_HEADER_BYTES: usize = 40;
