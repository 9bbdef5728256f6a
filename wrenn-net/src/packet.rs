//! Packets that are made by hand: a guest's SYN once more, and answers from addresses that are not here.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4Slice,
    PacketBuilder, TcpHeader, TcpSlice, UdpHeader,
};

/// A guest's first packet of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Syn {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    header: TcpHeader,
    /// What an ICMP message quotes.
    quoted: Vec<u8>,
}

/// A guest's echo request (RFC 792).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    /// Tells the programs of the guest apart that ask.
    pub(crate) identifier: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: Vec<u8>,
}

/// What ICMP has of an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EchoMessage<'a> {
    pub(crate) identifier: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: &'a [u8],
}

/// Why a connection or a datagram goes nowhere, as ICMP says it (RFC 792 and 1812).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Syn {
    /// Reads a packet, which begins with its IP header. `None` if it is no first packet of a connection.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let ip = Ipv4Slice::from_slice(packet).ok()?;
        if ip.is_payload_fragmented() || ip.payload_ip_number() != IpNumber::TCP {
            return None;
        }
        let header = TcpSlice::from_slice(ip.payload().payload).ok()?.to_header();
        let is_first = header.syn && !header.ack && !header.rst && !header.fin;
        let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
        is_first.then(|| Self {
            from: SocketAddrV4::new(from, header.source_port),
            to: SocketAddrV4::new(to, header.destination_port),
            quoted: quote(packet),
            header,
        })
    }

    /// The packet with a checksum, which the guest leaves to its network card. Data that it carried is sent again later.
    pub(crate) fn whole(&self) -> Vec<u8> {
        tcp(self.from, self.to, self.header.clone())
    }

    /// The answer of a port where nobody listens.
    pub(crate) fn reset(&self) -> Vec<u8> {
        let mut answer = TcpHeader::new(self.to.port(), self.from.port(), 0, 0);
        (answer.rst, answer.ack) = (true, true);
        answer.acknowledgment_number = self.header.sequence_number.wrapping_add(1);
        tcp(self.to, self.from, answer)
    }

    /// The answer of a router that knows no way.
    pub(crate) fn unreachable(&self, why: Unreachable) -> Vec<u8> {
        unreachable(*self.to.ip(), *self.from.ip(), why, &self.quoted)
    }
}

impl Echo {
    /// Reads a packet, which begins with its IP header. `None` if it is no echo request, or not all of one.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let ip = Ipv4Slice::from_slice(packet).ok()?;
        let EchoMessage { identifier, sequence, payload } = EchoMessage::read_request(payload_of(packet)?)?;
        let (from, to) = (ip.header().source_addr(), ip.header().destination_addr());
        Some(Self { from, to, identifier, sequence, payload: payload.to_vec() })
    }

    /// The request without its IP header, with another identifier.
    pub(crate) fn message(&self, identifier: u16) -> Vec<u8> {
        let kind = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: identifier, seq: self.sequence });
        let header = Icmpv4Header::with_checksum(kind, &self.payload);
        [&header.to_bytes(), &self.payload[..]].concat()
    }

    /// The answer of the host that it was for.
    pub(crate) fn reply(&self) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(self.to.octets(), self.from.octets(), TTL);
        let mut packet = Vec::new();
        builder.icmpv4_echo_reply(self.identifier, self.sequence).write_to_vec(&mut packet, &self.payload).ok();
        packet
    }

    /// The answer of a router that knows no way.
    pub(crate) fn unreachable(&self, why: Unreachable) -> Vec<u8> {
        let builder = PacketBuilder::ipv4(self.from.octets(), self.to.octets(), TTL);
        let mut request = Vec::new();
        builder.icmpv4_echo_request(self.identifier, self.sequence).write_to_vec(&mut request, &self.payload).ok();
        unreachable(self.to, self.from, why, &quote(&request))
    }
}

impl<'a> EchoMessage<'a> {
    /// Reads a request, without its IP header.
    pub(crate) fn read_request(message: &'a [u8]) -> Option<Self> {
        let message = Icmpv4Slice::from_slice(message).ok()?;
        match message.icmp_type() {
            Icmpv4Type::EchoRequest(header) => Some(Self::new(header, message.payload())),
            _ => None,
        }
    }

    /// Reads a reply, without its IP header.
    pub(crate) fn read_reply(message: &'a [u8]) -> Option<Self> {
        let message = Icmpv4Slice::from_slice(message).ok()?;
        match message.icmp_type() {
            Icmpv4Type::EchoReply(header) => Some(Self::new(header, message.payload())),
            _ => None,
        }
    }

    fn new(header: IcmpEchoHeader, payload: &'a [u8]) -> Self {
        Self { identifier: header.id, sequence: header.seq, payload }
    }
}

/// What a whole packet of ICMP has behind its IP header.
pub(crate) fn payload_of(packet: &[u8]) -> Option<&[u8]> {
    let ip = Ipv4Slice::from_slice(packet).ok()?;
    let is_whole = !ip.is_payload_fragmented() && ip.payload_ip_number() == IpNumber::ICMP;
    is_whole.then(|| ip.payload().payload)
}

/// A packet that belongs to no connection that its receiver has as it is: whoever has such a connection answers with the
/// numbers that it is at (RFC 5961, section 3.2).
pub(crate) fn provocation(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut header = TcpHeader::new(from.port(), to.port(), 0, 0);
    header.ack = true;
    tcp(from, to, header)
}

/// What the sender of a datagram gets that goes nowhere.
pub(crate) fn undelivered(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8], why: Unreachable) -> Vec<u8> {
    let quoted = datagram(from, to, payload).first().map(|packet| quote(packet)).unwrap_or_default();
    unreachable(*to.ip(), *from.ip(), why, &quoted)
}

/// A datagram, in as many packets as it takes.
pub(crate) fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<Vec<u8>> {
    let mut ip = Ipv4Header { time_to_live: TTL, protocol: IpNumber::UDP, ..Ipv4Header::default() };
    (ip.source, ip.destination) = (from.ip().octets(), to.ip().octets());
    let Ok(udp) = UdpHeader::with_ipv4_checksum(from.port(), to.port(), &ip, payload) else { return Vec::new() };
    let whole = [&udp.to_bytes(), payload].concat();
    let count = whole.len().div_ceil(FRAGMENT_BYTES);
    // What is to be put together has a number; the kernel numbers the others.
    ip.identification = if count > 1 { rand::random() } else { 0 };
    let pieces = whole.chunks(FRAGMENT_BYTES).enumerate().map_while(|(at, piece)| {
        ip.more_fragments = at + 1 < count;
        // In units of eight bytes.
        ip.fragment_offset = IpFragOffset::try_new(u16::try_from(at * FRAGMENT_BYTES / 8).ok()?).ok()?;
        ip.set_payload_len(piece.len()).ok()?;
        ip.header_checksum = ip.calc_header_checksum();
        Some([&ip.to_bytes(), piece].concat())
    });
    pieces.collect()
}

fn tcp(from: SocketAddrV4, to: SocketAddrV4, header: TcpHeader) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), TTL).tcp_header(header);
    // It fails for what is too long for a packet, and this has no data.
    builder.write_to_vec(&mut packet, &[]).ok();
    packet
}

fn unreachable(from: Ipv4Addr, to: Ipv4Addr, why: Unreachable, quoted: &[u8]) -> Vec<u8> {
    let why = match why {
        Unreachable::Network => DestUnreachableHeader::Network,
        Unreachable::Host => DestUnreachableHeader::Host,
        Unreachable::Port => DestUnreachableHeader::Port,
        Unreachable::Prohibited => DestUnreachableHeader::HostProhibited,
    };
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from.octets(), to.octets(), TTL);
    builder.icmpv4(Icmpv4Type::DestinationUnreachable(why)).write_to_vec(&mut packet, quoted).ok();
    packet
}

/// The IP header, and eight bytes, by which the receiver knows its own (RFC 792).
fn quote(packet: &[u8]) -> Vec<u8> {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    packet.iter().copied().take(header + 8).collect()
}

const TTL: u8 = 64;
/// What is left of an Ethernet frame's 1500 bytes after an IP header, and a multiple of eight.
const FRAGMENT_BYTES: usize = 1480;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().expect("an address")
    }

    /// A SYN as a guest sends it, with options, and a checksum that its card was to make.
    fn syn() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([169, 254, 0, 21], [93, 184, 216, 34], 64).tcp(40_000, 443, 7, 64_240).syn();
        let builder = builder.options_raw(&[2, 4, 5, 180, 1, 3, 3, 7]).expect("options");
        builder.write_to_vec(&mut packet, &[]).expect("a packet");
        packet[36..38].fill(0xee);
        packet
    }

    fn has_right_checksum(packet: &[u8]) -> bool {
        let ip = Ipv4Slice::from_slice(packet).expect("IP");
        let tcp = TcpSlice::from_slice(ip.payload().payload).expect("TCP");
        let (from, to) = (ip.header().source(), ip.header().destination());
        tcp.checksum() == tcp.calc_checksum_ipv4(from, to).expect("short")
    }

    #[test]
    fn a_syn_is_read_and_sent_on_whole() {
        let packet = syn();
        assert!(!has_right_checksum(&packet));
        let read = Syn::read(&packet).expect("a SYN");
        assert_eq!((read.from, read.to), (at("169.254.0.21:40000"), at("93.184.216.34:443")));
        let whole = read.whole();
        assert!(has_right_checksum(&whole));
        assert_eq!(whole[40..], [2, 4, 5, 180, 1, 3, 3, 7], "its options are the guest's");
    }

    #[test]
    fn only_first_packets_are_read_and_rubbish_is_not() {
        let packet = syn();
        for flags in [0x12, 0x10, 0x06, 0x03, 0x00] {
            let mut other = packet.clone();
            other[33] = flags;
            assert!(Syn::read(&other).is_none(), "{flags:x}");
        }
        for len in 0..packet.len() {
            assert!(Syn::read(&packet[..len]).is_none(), "{len}");
        }
        let mut fragment = packet.clone();
        fragment[6] = 0x20;
        assert!(Syn::read(&fragment).is_none());
    }

    #[test]
    fn a_refusal_acknowledges_the_syn_and_an_error_quotes_it() {
        let read = Syn::read(&syn()).expect("a SYN");
        let reset = read.reset();
        let tcp = TcpSlice::from_slice(&reset[20..]).expect("TCP");
        assert!(tcp.rst() && tcp.ack() && has_right_checksum(&reset));
        assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.acknowledgment_number()), (443, 40_000, 8));
        let unreachable = read.unreachable(Unreachable::Host);
        assert_eq!((unreachable[9], unreachable[20], unreachable[21]), (1, 3, 1));
        assert_eq!(unreachable[28..], syn()[..28]);
    }

    fn echo_request() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([169, 254, 0, 21], [93, 184, 216, 34], 64).icmpv4_echo_request(77, 3);
        builder.write_to_vec(&mut packet, b"a while").expect("a packet");
        packet
    }

    #[test]
    fn an_echo_request_is_read_sent_on_and_answered_with_its_own_numbers() {
        let packet = echo_request();
        let echo = Echo::read(&packet).expect("a request");
        assert_eq!((echo.from.octets(), echo.to.octets()), ([169, 254, 0, 21], [93, 184, 216, 34]));
        let message = echo.message(9);
        let read = EchoMessage { identifier: 9, sequence: 3, payload: b"a while" };
        assert_eq!(EchoMessage::read_request(&message), Some(read));
        assert_eq!((echo.message(77), EchoMessage::read_reply(&message)), (packet[20..].to_vec(), None));
        let reply = echo.reply();
        assert_eq!((&reply[12..16], &reply[16..20]), (&packet[16..20], &packet[12..16]));
        assert_eq!(
            payload_of(&reply).and_then(EchoMessage::read_reply),
            Some(EchoMessage { identifier: 77, sequence: 3, payload: b"a while" })
        );
        let unreachable = echo.unreachable(Unreachable::Prohibited);
        assert_eq!((unreachable[9], unreachable[20], unreachable[21]), (1, 3, 10));
        assert_eq!(unreachable[28..], packet[..28]);
    }

    #[test]
    fn only_whole_echo_requests_are_read() {
        let packet = echo_request();
        for len in 0..packet.len() {
            assert!(Echo::read(&packet[..len]).is_none(), "{len}");
        }
        for (at, byte) in [(6, 0x20), (7, 1), (9, 17), (20, 0), (20, 13), (21, 1)] {
            let mut other = packet.clone();
            other[at] = byte;
            assert!(Echo::read(&other).is_none(), "{at}: {byte}");
        }
        assert!(Echo::read(&syn()).is_none() && Syn::read(&packet).is_none());
    }

    #[test]
    fn a_long_datagram_goes_in_pieces_that_make_the_whole() {
        let payload: Vec<u8> = (0..4000_u32).map(|at| at.to_le_bytes()[0]).collect();
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
}
