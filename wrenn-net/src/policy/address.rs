//! Which addresses are out on the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Realm {
    /// On the public internet.
    Public,
    /// In a network that belongs to somebody: reached only where a policy names that network.
    Private,
    /// On the host itself, on its link, or at many places. Never reached.
    Local,
}

/// Where `address` is. One that has another inside of it is where that one is.
pub(crate) fn realm(address: IpAddr) -> Realm {
    let address = embedded(address);
    if contains(&LOCAL_V4, &LOCAL_V6, address) {
        Realm::Local
    } else if contains(&PRIVATE_V4, &PRIVATE_V6, address) || !is_assigned(address) {
        Realm::Private
    } else {
        Realm::Public
    }
}

/// Whether every address of `network` is private, so that whoever writes it down means that network.
pub(crate) fn is_private(network: &IpNet) -> bool {
    match network {
        IpNet::V4(network) => PRIVATE_V4.iter().any(|private| private.contains(network)),
        IpNet::V6(network) => PRIVATE_V6.iter().any(|private| private.contains(network)),
    }
}

/// The IPv4 address that an IPv6 address stands for; else the address.
pub(crate) fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = ([(high >> 8) as u8, (high & 0xff) as u8], [(low >> 8) as u8, (low & 0xff) as u8]);
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match (a, b, c, d, e, f) {
        // Mapped and compatible (RFC 4291), but not `::` and `::1`.
        (0, 0, 0, 0, 0, 0xffff) => v4(g, h),
        (0, 0, 0, 0, 0, 0) if (g, h) != (0, 0) && (g, h) != (0, 1) => v4(g, h),
        // NAT64 (RFC 6052). A prefix for a network of one's own (RFC 8215) may have it elsewhere.
        (0x64, 0xff9b, 0, 0, 0, 0) => v4(g, h),
        // 6to4 (RFC 3056).
        (0x2002, high, low, ..) => v4(high, low),
        _ => address,
    }
}

fn contains(v4: &[Ipv4Net], v6: &[Ipv6Net], address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => v4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => v6.iter().any(|network| network.contains(&address)),
    }
}

/// Global unicast is all that IANA gives out of IPv6.
fn is_assigned(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => address.segments()[0] >> 13 == 1,
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

/// From IANA's registry of special-purpose IPv4 addresses (RFC 6890 and its updates), as are all of these.
const LOCAL_V4: [Ipv4Net; 5] =
    [v4(0, 0, 0, 0, 8), v4(127, 0, 0, 0, 8), v4(169, 254, 0, 0, 16), v4(224, 0, 0, 0, 4), v4(240, 0, 0, 0, 4)];
const PRIVATE_V4: [Ipv4Net; 10] = [
    v4(10, 0, 0, 0, 8),
    v4(100, 64, 0, 0, 10),
    v4(172, 16, 0, 0, 12),
    v4(192, 0, 0, 0, 24),
    v4(192, 0, 2, 0, 24),
    v4(192, 88, 99, 0, 24),
    v4(192, 168, 0, 0, 16),
    v4(198, 18, 0, 0, 15),
    v4(198, 51, 100, 0, 24),
    v4(203, 0, 113, 0, 24),
];
const LOCAL_V6: [Ipv6Net; 3] = [v6(0, 0, 127), v6(0xfe80, 0, 10), v6(0xff00, 0, 8)];
const PRIVATE_V6: [Ipv6Net; 5] =
    [v6(0xfc00, 0, 7), v6(0xfec0, 0, 10), v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x3fff, 0, 20)];

#[cfg(test)]
mod tests {
    use super::*;

    fn realm_of(address: &str) -> Realm {
        realm(address.parse().expect("an address"))
    }

    #[test]
    fn each_address_is_where_it_is_however_it_is_written() {
        for (expected, addresses) in [
            (
                Realm::Public,
                &["93.184.216.34", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.128.0.1", "2606:2800::1"][..],
            ),
            (Realm::Public, &["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"][..]),
            (Realm::Private, &["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "203.0.113.9"][..]),
            (Realm::Private, &["fd00::1", "2001:db8::1", "::ffff:10.0.0.1", "64:ff9b::c0a8:101", "2002:a00:1::"][..]),
            (Realm::Private, &["64:ff9b:1::10.1.1.1", "2001::1", "4000::1", "::10.0.0.1"][..]),
            // Whose IPv4 address is elsewhere than in the last bits, and so is not known.
            (Realm::Private, &["64:ff9b:1:a00:1::808:808", "64:ff9b:1::8.8.8.8", "64:ff9b::1:8.8.8.8"][..]),
            // To be discarded, segment identifiers, sites, Teredo, benchmarks, ORCHID, documentation.
            (Realm::Private, &["100::1", "100:0:0:1::1", "5f00::1", "fec0::15", "2001:0:808:808::1", "2001:2::1"][..]),
            (Realm::Private, &["2001:20::1", "3fff::1", "fc00::1", "fdff:ffff::1"][..]),
            (Realm::Public, &["2001:200::1", "2400::1", "2620:4f:8000::1", "2a00:1450::1", "3ffe::1"][..]),
            (
                Realm::Local,
                &["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1"][..],
            ),
            (Realm::Local, &["::", "::1", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe"][..]),
            (Realm::Local, &["febf::1", "ff0e::1", "::127.0.0.1", "2002:7f00:1::1", "2002:a9fe:a9fe::1"][..]),
        ] {
            for address in addresses {
                assert_eq!(realm_of(address), expected, "{address}");
            }
        }
    }

    #[test]
    fn only_a_network_that_is_private_throughout_is_meant() {
        for (network, is) in [("10.1.0.0/16", true), ("10.0.0.0/7", false), ("0.0.0.0/0", false), ("fd00::/8", true)] {
            assert_eq!(is_private(&network.parse().expect("a network")), is, "{network}");
        }
    }
}
