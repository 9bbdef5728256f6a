//! What becomes of a guest's packets in its slot: a table of nftables for each version of IP, and a route.
//!
//! ```text
//!  from the loopback, marked, TCP ─▶ the transparent listener      (a guest's SYN, sent on once its dial has succeeded)
//!  from the tap
//!      IPv6: who has this address? ─▶ the kernel                    (and of other ICMP, echo requests to the tap's own
//!                                                                    address alone)
//!      to the tap's own address ─▶ the kernel                       (answers to wrenn's connections to the guest)
//!      SYN ─▶ dropped                                               (the packet socket has seen it)
//!      TCP, UDP ─▶ marked, to the transparent sockets               (of IPv6: from the guest's address alone)
//!      all else ─▶ dropped                                          (the packet socket has seen echo requests)
//!  what is marked is for this host, whatever its address: rule and route
//! ```
//!
//! IPv6 asks for routers, and takes what is sent as one's word. Here nobody asks, and what a guest says as a router is dropped.

mod expression;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::sys::socket::SockProtocol;

use crate::netlink::{Attributes, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Netlink};
use expression::{
    Is, META_L4PROTO, META_MARK, NETWORK_HEADER, NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFPROTO_IPV6, TRANSPORT_HEADER,
    bits, compare, from_link, meta_is, payload, set_mark, to_socket, verdict,
};

/// Where packets go: the ports of the transparent sockets, which listen on a [`loopback`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) tcp: u16,
    pub(crate) udp: u16,
}

/// The addresses of a tap's two ends, which are of one version of IP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) host: IpAddr,
    pub(crate) guest: IpAddr,
}

/// The loopback's address of the same version of IP.
pub(crate) fn loopback(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Makes the table of one version of IP in the calling thread's namespace. `tap` is the guest's link.
pub(crate) fn make_table(tap: &str, ends: Ends, ports: Ports) -> io::Result<()> {
    let listener = loopback(ends.host);
    let mut table = Table::new(ends.host);
    table.rule(|e| {
        from_link(e, "lo", Is::Equal);
        meta_is(e, META_MARK, &MARK.to_le_bytes(), Is::Equal);
        meta_is(e, META_L4PROTO, &[TCP], Is::Equal);
        to_socket(e, listener, ports.tcp);
        verdict(e, NF_ACCEPT);
    });
    table.rule(|e| {
        from_link(e, tap, Is::Other);
        verdict(e, NF_ACCEPT);
    });
    if ends.host.is_ipv6() {
        meet_neighbours(&mut table, ends.host);
    }
    table.rule(|e| {
        is_to(e, ends.host);
        verdict(e, NF_ACCEPT);
    });
    table.rule(|e| {
        meta_is(e, META_L4PROTO, &[TCP], Is::Equal);
        payload(e, TRANSPORT_HEADER, TCP_FLAGS, 1);
        bits(e, TCP_SYN | TCP_ACK);
        compare(e, &[TCP_SYN], Is::Equal);
        verdict(e, NF_DROP);
    });
    for (protocol, port) in [(TCP, ports.tcp), (UDP, ports.udp)] {
        table.rule(|e| {
            // The address of a link would be another link's here.
            if let IpAddr::V6(guest) = ends.guest {
                payload(e, NETWORK_HEADER, IPV6_SOURCE, 16);
                compare(e, &guest.octets(), Is::Equal);
            }
            meta_is(e, META_L4PROTO, &[protocol], Is::Equal);
            to_socket(e, listener, port);
            set_mark(e, MARK);
            verdict(e, NF_ACCEPT);
        });
    }
    table.rule(|e| verdict(e, NF_DROP));
    table.send()
}

/// Of ICMP, what asks for the host's end of the link, and echo requests to it. The kernel looks at whom a question is about,
/// and has none of its own: it knows where the guest is.
fn meet_neighbours(table: &mut Table, host: IpAddr) {
    table.rule(|e| {
        is_icmpv6(e, NEIGHBOUR_SOLICITATION);
        verdict(e, NF_ACCEPT);
    });
    table.rule(|e| {
        is_icmpv6(e, ECHO_REQUEST);
        is_to(e, host);
        verdict(e, NF_ACCEPT);
    });
    table.rule(|e| {
        meta_is(e, META_L4PROTO, &[ICMPV6], Is::Equal);
        verdict(e, NF_DROP);
    });
}

fn is_icmpv6(e: &mut Attributes, kind: u8) {
    meta_is(e, META_L4PROTO, &[ICMPV6], Is::Equal);
    payload(e, TRANSPORT_HEADER, 0, 1);
    compare(e, &[kind], Is::Equal);
}

fn is_to(e: &mut Attributes, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            payload(e, NETWORK_HEADER, IPV4_DESTINATION, 4);
            compare(e, &address.octets(), Is::Equal);
        }
        IpAddr::V6(address) => {
            payload(e, NETWORK_HEADER, IPV6_DESTINATION, 16);
            compare(e, &address.octets(), Is::Equal);
        }
    }
}

/// A table with one chain, as it is put together.
struct Table {
    batch: Messages,
    family: u8,
    /// How many requests are to be answered.
    answers: usize,
}

impl Table {
    /// A table for what has this version of IP.
    fn new(like: IpAddr) -> Self {
        let family = if like.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
        let mut table = Self { batch: Messages::default(), family, answers: 0 };
        table.batch.add(NFNL_MSG_BATCH_BEGIN, 0, &BATCH, |_| ());
        table.add(NFT_MSG_NEWTABLE, NLM_F_CREATE, |table| _ = table.text(NFTA_TABLE_NAME, TABLE));
        table.add(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |chain| {
            chain.text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, CHAIN).text(NFTA_CHAIN_TYPE, "filter");
            chain.nested(NFTA_CHAIN_HOOK, |hook| {
                let mangle = PRIORITY_MANGLE.cast_unsigned();
                hook.number(NFTA_HOOK_HOOKNUM, NF_INET_PRE_ROUTING).number(NFTA_HOOK_PRIORITY, mangle);
            });
        });
        table
    }

    fn rule(&mut self, expressions: impl FnOnce(&mut Attributes)) {
        self.add(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |rule| {
            rule.text(NFTA_RULE_TABLE, TABLE).text(NFTA_RULE_CHAIN, CHAIN);
            rule.nested(NFTA_RULE_EXPRESSIONS, expressions);
        });
    }

    fn add(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Attributes)) {
        self.answers += 1;
        // `struct nfgenmsg`: family, version, and a number in network order.
        self.batch.add(message(kind), flags | NLM_F_ACK, &[self.family, 0, 0, 0], attributes);
    }

    fn send(mut self) -> io::Result<()> {
        self.batch.add(NFNL_MSG_BATCH_END, 0, &BATCH, |_| ());
        Netlink::open(SockProtocol::NetlinkNetFilter)?.send(&self.batch, self.answers)
    }
}

/// Has the loopback take what comes from addresses that are not behind it, such as a guest's SYN that is sent on: a filter
/// that is set for all links of the host would drop it. (By netlink, since `/proc/sys` cannot be written in a container.)
pub(crate) fn loosen_loopback() -> io::Result<()> {
    set_link(LOOPBACK_INDEX, AF_INET, |inet| {
        inet.nested(IFLA_INET_CONF, |settings| {
            settings.bytes(IPV4_DEVCONF_RP_FILTER, &LOOSE.to_le_bytes());
        });
    })
}

/// Has a link that is not up yet give itself no IPv6 address. Without one, it asks for no routers either.
///
/// # Errors
/// Among others, this kernel has no IPv6.
pub(crate) fn quiet_ipv6(link: u32) -> io::Result<()> {
    set_link(link, AF_INET6, |inet6| _ = inet6.bytes(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]))
}

fn set_link(index: u32, family: u16, settings: impl FnOnce(&mut Attributes)) -> io::Result<()> {
    let mut message = Messages::default();
    let mut link = [0; 16]; // `struct ifinfomsg`
    link[4..8].copy_from_slice(&index.to_le_bytes());
    message.add(RTM_SETLINK, NLM_F_ACK, &link, |link| {
        link.nested(IFLA_AF_SPEC, |families| _ = families.nested(family, settings));
    });
    Netlink::open(SockProtocol::NetlinkRoute)?.send(&message, 1)
}

const fn message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// The mark of packets that are for the transparent sockets.
pub(crate) const MARK: u32 = 1;
/// The table of routes for what is marked.
pub(crate) const ROUTES: u32 = 100;
const TABLE: &str = "wrenn";
const CHAIN: &str = "guest";

/// The first link of each namespace.
pub(crate) const LOOPBACK_INDEX: u32 = 1;
/// RFC 3704.
const LOOSE: u32 = 2;

// include/uapi/linux/rtnetlink.h, if_link.h and ip.h
const RTM_SETLINK: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

// include/uapi/linux/netfilter/nfnetlink.h, netfilter.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NF_INET_PRE_ROUTING: u32 = 0;
/// Before routing is decided (include/uapi/linux/netfilter_ipv4.h and netfilter_ipv6.h).
const PRIORITY_MANGLE: i32 = -150;
const BATCH: [u8; 4] = [0, 0, 0, 10];

// include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;

// RFC 791, 8200, 9293, 4443 and 4861, and IANA's protocol numbers
const IPV4_DESTINATION: u32 = 16;
const IPV6_SOURCE: u32 = 8;
const IPV6_DESTINATION: u32 = 24;
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
const ECHO_REQUEST: u8 = 128;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
