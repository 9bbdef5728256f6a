//! A guest's echo requests, and answers to them.

use std::net::IpAddr;

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber};

use crate::packet::ip::{Whole, header};
use crate::packet::unreachable::{Unreachable, quote, unreachable};

/// A guest's echo request (RFC 792 and 4443).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Echo {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
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

impl Echo {
    /// Reads a packet, which begins with its IP header. `None` if it is no echo request, or not all of one.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let Whole { from, to, .. } = Whole::read(packet)?;
        let EchoMessage { identifier, sequence, payload } = EchoMessage::read_request(payload_of(packet)?, to)?;
        Some(Self { from, to, identifier, sequence, payload: payload.to_vec() })
    }

    /// The request without its IP header, with another identifier. The kernel makes the checksum of one of IPv6.
    pub(crate) fn message(&self, identifier: u16) -> Vec<u8> {
        let echo = IcmpEchoHeader { id: identifier, seq: self.sequence };
        let header = match self.to {
            IpAddr::V4(_) => {
                Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &self.payload).to_bytes().to_vec()
            }
            IpAddr::V6(_) => Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes().to_vec(),
        };
        [&header, &self.payload[..]].concat()
    }

    /// The answer of the host that it was for.
    pub(crate) fn reply(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let Some(header) = header(self.to, self.from) else { return packet };
        let (identifier, sequence) = (self.identifier, self.sequence);
        let written = match self.to {
            IpAddr::V4(_) => header.icmpv4_echo_reply(identifier, sequence).write_to_vec(&mut packet, &self.payload),
            IpAddr::V6(_) => header.icmpv6_echo_reply(identifier, sequence).write_to_vec(&mut packet, &self.payload),
        };
        written.ok();
        packet
    }

    /// The answer of a router that knows no way.
    pub(crate) fn unreachable(&self, why: Unreachable) -> Vec<u8> {
        let mut request = Vec::new();
        let Some(header) = header(self.from, self.to) else { return request };
        let (identifier, sequence) = (self.identifier, self.sequence);
        let written = match self.to {
            IpAddr::V4(_) => header.icmpv4_echo_request(identifier, sequence).write_to_vec(&mut request, &self.payload),
            IpAddr::V6(_) => header.icmpv6_echo_request(identifier, sequence).write_to_vec(&mut request, &self.payload),
        };
        written.ok();
        unreachable(self.to, self.from, why, &quote(&request))
    }
}

impl<'a> EchoMessage<'a> {
    /// Reads a request to `of`, without its IP header.
    pub(crate) fn read_request(message: &'a [u8], of: IpAddr) -> Option<Self> {
        Self::read(message, if of.is_ipv4() { REQUEST } else { REQUEST_V6 })
    }

    /// Reads a reply of `of`, without its IP header.
    pub(crate) fn read_reply(message: &'a [u8], of: IpAddr) -> Option<Self> {
        Self::read(message, if of.is_ipv4() { REPLY } else { REPLY_V6 })
    }

    /// Both versions have the same fields. Whether the checksum is right is for who gets it to see.
    fn read(message: &'a [u8], kind: u8) -> Option<Self> {
        let (&[own_kind, code, _, _, id_high, id_low, sequence_high, sequence_low], payload) =
            message.split_first_chunk::<HEADER_BYTES>()?;
        let number = |high: u8, low: u8| u16::from(high) << 8 | u16::from(low);
        let (identifier, sequence) = (number(id_high, id_low), number(sequence_high, sequence_low));
        ((own_kind, code) == (kind, 0)).then_some(Self { identifier, sequence, payload })
    }
}

/// What a whole packet of ICMP has behind its IP header.
pub(crate) fn payload_of(packet: &[u8]) -> Option<&[u8]> {
    let Whole { to, protocol, payload, .. } = Whole::read(packet)?;
    let icmp = if to.is_ipv4() { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
    (protocol == icmp).then_some(payload)
}

const HEADER_BYTES: usize = 8;
// RFC 792.
const REQUEST: u8 = 8;
const REPLY: u8 = 0;
// RFC 4443.
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Slice, PacketBuilder};

    use super::*;

    fn echo_request() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([169, 254, 0, 21], [93, 184, 216, 34], 64).icmpv4_echo_request(77, 3);
        builder.write_to_vec(&mut packet, b"a while").expect("a packet");
        packet
    }

    fn echo_request_v6() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6(GUEST, SERVER, 64).icmpv6_echo_request(77, 3);
        builder.write_to_vec(&mut packet, b"a while").expect("a packet");
        packet
    }

    const GUEST: [u8; 16] = [0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15];
    const SERVER: [u8; 16] = [0x26, 6, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    #[test]
    fn an_echo_request_is_read_sent_on_and_answered_with_its_own_numbers() {
        let packet = echo_request();
        let echo = Echo::read(&packet).expect("a request");
        assert_eq!((echo.from.to_string(), echo.to.to_string()), ("169.254.0.21".into(), "93.184.216.34".into()));
        let message = echo.message(9);
        let read = EchoMessage { identifier: 9, sequence: 3, payload: b"a while" };
        assert_eq!(EchoMessage::read_request(&message, echo.to), Some(read));
        assert_eq!((echo.message(77), EchoMessage::read_reply(&message, echo.to)), (packet[20..].to_vec(), None));
        let reply = echo.reply();
        assert_eq!((&reply[12..16], &reply[16..20]), (&packet[16..20], &packet[12..16]));
        assert_eq!(
            payload_of(&reply).and_then(|message| EchoMessage::read_reply(message, echo.to)),
            Some(EchoMessage { identifier: 77, sequence: 3, payload: b"a while" })
        );
        let unreachable = echo.unreachable(Unreachable::Prohibited);
        assert_eq!((unreachable[9], unreachable[20], unreachable[21]), (1, 3, 10));
        assert_eq!(unreachable[28..], packet[..28]);
    }

    #[test]
    fn one_of_ipv6_is_as_well() {
        let packet = echo_request_v6();
        let echo = Echo::read(&packet).expect("a request");
        assert_eq!((echo.from, echo.to), (IpAddr::from(GUEST), IpAddr::from(SERVER)));
        let message = echo.message(9);
        let read = EchoMessage { identifier: 9, sequence: 3, payload: b"a while" };
        assert_eq!(EchoMessage::read_request(&message, echo.to), Some(read));
        assert_eq!(EchoMessage::read_request(&message, [1, 1, 1, 1].into()), None);
        let reply = echo.reply();
        assert_eq!((&reply[8..24], &reply[24..40]), (&SERVER[..], &GUEST[..]));
        assert!(Icmpv6Slice::from_slice(&reply[40..]).expect("ICMP").is_checksum_valid(SERVER, GUEST));
        assert_eq!(
            payload_of(&reply).and_then(|message| EchoMessage::read_reply(message, echo.to)),
            Some(EchoMessage { identifier: 77, sequence: 3, payload: b"a while" })
        );
        let unreachable = echo.unreachable(Unreachable::Host);
        assert!(Icmpv6Slice::from_slice(&unreachable[40..]).expect("ICMP").is_checksum_valid(SERVER, GUEST));
        assert_eq!((unreachable[6], unreachable[40], unreachable[41]), (58, 1, 3));
        assert_eq!(unreachable[48..], packet[..48]);
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
        let packet = echo_request_v6();
        for len in 0..packet.len() {
            assert!(Echo::read(&packet[..len]).is_none(), "{len}");
        }
        // Another version, an extension header, and other messages.
        for (at, byte) in [(0, 0x50), (6, 0), (6, 44), (6, 1), (40, 129), (40, 135), (41, 1)] {
            let mut other = packet.clone();
            other[at] = byte;
            assert!(Echo::read(&other).is_none(), "{at}: {byte}");
        }
    }
}
