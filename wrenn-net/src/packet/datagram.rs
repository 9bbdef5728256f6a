//! Datagrams to a guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, UdpHeader};

use crate::packet::ip::{IPV6_HEADER_BYTES, TTL};
use crate::packet::unreachable::{Unreachable, quote, unreachable};

/// What the sender of a datagram gets that goes nowhere.
pub(crate) fn undelivered(from: SocketAddr, to: SocketAddr, payload: &[u8], why: Unreachable) -> Vec<u8> {
    let quoted = datagram(from, to, payload).first().map(|packet| quote(packet)).unwrap_or_default();
    unreachable(to.ip(), from.ip(), why, &quoted)
}

/// A datagram, in as many packets as it takes. None where it is too long, or its ends have addresses of different versions.
pub(crate) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    let ports = (from.port(), to.port());
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => of_v4(from, to, ports, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => of_v6(from, to, ports, payload),
        _ => Vec::new(),
    }
}

fn of_v4(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<Vec<u8>> {
    let mut ip = Ipv4Header { time_to_live: TTL, protocol: IpNumber::UDP, ..Ipv4Header::default() };
    (ip.source, ip.destination) = (from.octets(), to.octets());
    let Ok(udp) = UdpHeader::with_ipv4_checksum(ports.0, ports.1, &ip, payload) else { return Vec::new() };
    let whole = [&udp.to_bytes(), payload].concat();
    let count = whole.len().div_ceil(IPV4_PIECE_BYTES);
    // What is to be put together has a number; the kernel numbers the others.
    ip.identification = if count > 1 { rand::random() } else { 0 };
    let pieces = whole.chunks(IPV4_PIECE_BYTES).enumerate().map_while(|(at, piece)| {
        ip.more_fragments = at + 1 < count;
        ip.fragment_offset = offset(at * IPV4_PIECE_BYTES)?;
        ip.set_payload_len(piece.len()).ok()?;
        ip.header_checksum = ip.calc_header_checksum();
        Some([&ip.to_bytes(), piece].concat())
    });
    pieces.collect()
}

fn of_v6(from: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16), payload: &[u8]) -> Vec<Vec<u8>> {
    let mut ip = Ipv6Header { hop_limit: TTL, next_header: IpNumber::UDP, ..Ipv6Header::default() };
    (ip.source, ip.destination) = (from.octets(), to.octets());
    let Ok(udp) = UdpHeader::with_ipv6_checksum(ports.0, ports.1, &ip, payload) else { return Vec::new() };
    let whole = [&udp.to_bytes(), payload].concat();
    if whole.len() <= FRAME_BYTES - IPV6_HEADER_BYTES {
        return ip
            .set_payload_length(whole.len())
            .map(|()| [&ip.to_bytes(), &whole[..]].concat())
            .into_iter()
            .collect();
    }
    ip.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
    let (count, number) = (whole.len().div_ceil(IPV6_PIECE_BYTES), rand::random());
    let pieces = whole.chunks(IPV6_PIECE_BYTES).enumerate().map_while(|(at, piece)| {
        let offset = offset(at * IPV6_PIECE_BYTES)?;
        let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, at + 1 < count, number);
        ip.set_payload_length(Ipv6FragmentHeader::LEN + piece.len()).ok()?;
        Some([&ip.to_bytes()[..], &fragment.to_bytes(), piece].concat())
    });
    pieces.collect()
}

/// Where a piece begins, in units of eight bytes.
fn offset(bytes: usize) -> Option<IpFragOffset> {
    IpFragOffset::try_new(u16::try_from(bytes / 8).ok()?).ok()
}

/// What an Ethernet frame carries.
const FRAME_BYTES: usize = 1500;
/// What is left of a frame after an IP header, and a multiple of eight.
const IPV4_PIECE_BYTES: usize = 1480;
/// The same after IPv6's header and that of a fragment.
const IPV6_PIECE_BYTES: usize = 1448;

#[cfg(test)]
mod tests {
    use etherparse::UdpSlice;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn long() -> Vec<u8> {
        (0..4000_u32).map(|at| at.to_le_bytes()[0]).collect()
    }

    #[test]
    fn a_long_datagram_goes_in_pieces_that_make_the_whole() {
        let payload = long();
        let packets = datagram(at("93.184.216.34:53"), at("169.254.0.21:5000"), &payload);
        let headers: Vec<_> = packets.iter().map(|packet| Ipv4Header::from_slice(packet).expect("IP")).collect();
        let pieces: Vec<_> =
            headers.iter().map(|(ip, _)| (ip.fragment_offset.byte_offset(), ip.more_fragments)).collect();
        assert_eq!(pieces, [(0, true), (1480, true), (2960, false)]);
        assert!(headers.iter().all(|(ip, _)| ip.identification == headers[0].0.identification));
        let whole: Vec<u8> = headers.iter().flat_map(|(_, rest)| rest.iter().copied()).collect();
        assert_eq!(whole[8..], payload);
        assert_eq!(datagram(at("1.1.1.1:1"), at("2.2.2.2:2"), b"").len(), 1);
        assert!(datagram(at("1.1.1.1:1"), at("2.2.2.2:2"), &[0; 65_530]).is_empty());
    }

    #[test]
    fn a_long_datagram_of_ipv6_goes_in_pieces_that_make_the_whole() {
        let payload = long();
        let (from, to) = (at("[2606:2800::1]:53"), at("[fec0::15]:5000"));
        let packets = datagram(from, to, &payload);
        assert!(packets.iter().all(|packet| packet.len() <= FRAME_BYTES));
        let pieces: Vec<_> = packets
            .iter()
            .map(|packet| Ipv6FragmentHeader::from_slice(&packet[IPV6_HEADER_BYTES..]).expect("a piece"))
            .collect();
        let places: Vec<_> =
            pieces.iter().map(|(header, _)| (header.fragment_offset.byte_offset(), header.more_fragments)).collect();
        assert_eq!(places, [(0, true), (1448, true), (2896, false)]);
        let whole: Vec<u8> = pieces.iter().flat_map(|(_, rest)| rest.iter().copied()).collect();
        assert_eq!(whole[8..], payload);
        for (len, count) in [(0, 1), (1452, 1), (1453, 2), (65_527, 46), (65_528, 0)] {
            let packets = datagram(from, to, &vec![7; len]);
            assert_eq!(packets.len(), count, "{len} bytes");
            if count == 1 {
                let udp = UdpSlice::from_slice(&packets[0][IPV6_HEADER_BYTES..]).expect("UDP");
                assert_eq!((udp.payload().len(), udp.source_port(), udp.destination_port()), (len, 53, 5000));
            }
        }
    }

    #[test]
    fn there_is_no_datagram_between_two_versions() {
        assert!(datagram(at("1.1.1.1:1"), at("[fec0::15]:2"), b"a").is_empty());
        assert!(undelivered(at("1.1.1.1:1"), at("[fec0::15]:2"), b"a", Unreachable::Port).is_empty());
    }
}
