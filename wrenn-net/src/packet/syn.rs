//! A guest's first packet of a connection, and answers to it.

use std::net::SocketAddr;

use etherparse::{IpNumber, TcpHeader, TcpSlice};

use crate::packet::ip::{Whole, header};
use crate::packet::unreachable::{Unreachable, quote, unreachable};

/// A guest's first packet of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Syn {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    header: TcpHeader,
    /// What an ICMP message quotes.
    quoted: Vec<u8>,
}

impl Syn {
    /// Reads a packet, which begins with its IP header. `None` if it is no first packet of a connection.
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let ip = Whole::read(packet)?;
        if ip.protocol != IpNumber::TCP {
            return None;
        }
        let header = TcpSlice::from_slice(ip.payload).ok()?.to_header();
        let is_first = header.syn && !header.ack && !header.rst && !header.fin;
        is_first.then(|| Self {
            from: SocketAddr::new(ip.from, header.source_port),
            to: SocketAddr::new(ip.to, header.destination_port),
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
        unreachable(self.to.ip(), self.from.ip(), why, &self.quoted)
    }
}

/// A packet that belongs to no connection that its receiver has as it is: whoever has such a connection answers with the
/// numbers that it is at (RFC 5961, section 3.2).
pub(crate) fn provocation(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut header = TcpHeader::new(from.port(), to.port(), 0, 0);
    header.ack = true;
    tcp(from, to, header)
}

fn tcp(from: SocketAddr, to: SocketAddr, tcp: TcpHeader) -> Vec<u8> {
    let mut packet = Vec::new();
    if let Some(header) = header(from.ip(), to.ip()) {
        // It fails for what is too long for a packet, and this has no data.
        header.tcp_header(tcp).write_to_vec(&mut packet, &[]).ok();
    }
    packet
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4Slice, Ipv6Slice, PacketBuilder};

    use super::*;
    use crate::packet::echo::Echo;

    fn at(text: &str) -> SocketAddr {
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

    fn syn_v6() -> Vec<u8> {
        let (from, to) = ("fec0::15", "2606:2800::1");
        let octets = |text: &str| text.parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv6(octets(from), octets(to), 64).tcp(40_000, 443, 7, 64_240).syn();
        let builder = builder.options_raw(&[2, 4, 5, 160, 1, 3, 3, 7]).expect("options");
        builder.write_to_vec(&mut packet, &[]).expect("a packet");
        packet[56..58].fill(0xee);
        packet
    }

    fn has_right_checksum(packet: &[u8]) -> bool {
        if packet[0] >> 4 == 6 {
            let ip = Ipv6Slice::from_slice(packet).expect("IP");
            let tcp = TcpSlice::from_slice(ip.payload().payload).expect("TCP");
            let (from, to) = (ip.header().source(), ip.header().destination());
            return tcp.checksum() == tcp.calc_checksum_ipv6(from, to).expect("short");
        }
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
        let packet = syn_v6();
        assert!(!has_right_checksum(&packet));
        let read = Syn::read(&packet).expect("a SYN");
        assert_eq!((read.from, read.to), (at("[fec0::15]:40000"), at("[2606:2800::1]:443")));
        let whole = read.whole();
        assert!(has_right_checksum(&whole));
        assert_eq!(whole[60..], [2, 4, 5, 160, 1, 3, 3, 7], "its options are the guest's");
    }

    #[test]
    fn only_first_packets_are_read_and_rubbish_is_not() {
        for (packet, flags_at) in [(syn(), 33), (syn_v6(), 53)] {
            for flags in [0x12, 0x10, 0x06, 0x03, 0x00] {
                let mut other = packet.clone();
                other[flags_at] = flags;
                assert!(Syn::read(&other).is_none(), "{flags:x}");
            }
            for len in 0..packet.len() {
                assert!(Syn::read(&packet[..len]).is_none(), "{len}");
            }
            assert!(Echo::read(&packet).is_none());
        }
        let mut fragment = syn();
        fragment[6] = 0x20;
        assert!(Syn::read(&fragment).is_none());
        // Hop-by-hop options, a routing header, a fragment.
        for extension in [0, 43, 44, 60] {
            let mut other = syn_v6();
            other[6] = extension;
            assert!(Syn::read(&other).is_none(), "{extension}");
        }
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
        let read = Syn::read(&syn_v6()).expect("a SYN");
        let reset = read.reset();
        let tcp = TcpSlice::from_slice(&reset[40..]).expect("TCP");
        assert!(tcp.rst() && tcp.ack() && has_right_checksum(&reset));
        assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.acknowledgment_number()), (443, 40_000, 8));
        let unreachable = read.unreachable(Unreachable::Network);
        assert_eq!((unreachable[6], unreachable[40], unreachable[41]), (58, 1, 0));
        assert_eq!(unreachable[48..], syn_v6()[..48]);
    }
}
