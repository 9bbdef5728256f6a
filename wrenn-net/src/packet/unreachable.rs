//! What a router says that knows no way.

use std::net::IpAddr;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Type, Icmpv6Type};

use crate::packet::ip::{IPV6_HEADER_BYTES, header};

/// Why a connection or a datagram goes nowhere, as ICMP says it (RFC 792 and 1812, and RFC 4443).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

/// A message from `from` to `to`, which is about a packet of the latter's.
pub(super) fn unreachable(from: IpAddr, to: IpAddr, why: Unreachable, quoted: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let Some(header) = header(from, to) else { return packet };
    let message = match from {
        IpAddr::V4(_) => {
            header.icmpv4(Icmpv4Type::DestinationUnreachable(why.of_v4())).write_to_vec(&mut packet, quoted)
        }
        IpAddr::V6(_) => {
            header.icmpv6(Icmpv6Type::DestinationUnreachable(why.of_v6())).write_to_vec(&mut packet, quoted)
        }
    };
    // It fails for what is too long for a packet, and this is short.
    message.ok();
    packet
}

impl Unreachable {
    fn of_v4(self) -> DestUnreachableHeader {
        match self {
            Self::Network => DestUnreachableHeader::Network,
            Self::Host => DestUnreachableHeader::Host,
            Self::Port => DestUnreachableHeader::Port,
            Self::Prohibited => DestUnreachableHeader::HostProhibited,
        }
    }

    fn of_v6(self) -> DestUnreachableCode {
        match self {
            Self::Network => DestUnreachableCode::NoRoute,
            Self::Host => DestUnreachableCode::Address,
            Self::Port => DestUnreachableCode::Port,
            Self::Prohibited => DestUnreachableCode::Prohibited,
        }
    }
}

/// The IP header, and eight bytes, by which the receiver knows its own (RFC 792; RFC 4443 lets there be more).
pub(super) fn quote(packet: &[u8]) -> Vec<u8> {
    let header = match packet.first() {
        Some(first) if first >> 4 == 6 => IPV6_HEADER_BYTES,
        Some(first) => usize::from(first & 0x0f) * 4,
        None => 0,
    };
    packet.iter().copied().take(header + 8).collect()
}
