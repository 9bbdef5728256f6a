//! What becomes of a guest's packets in its slot: a table of nftables, and a route.
//!
//! ```text
//!  from the loopback, marked, TCP ─▶ the transparent listener      (a guest's SYN, sent on once its dial has succeeded)
//!  from the tap, to the tap's own address ─▶ the kernel            (answers to wrenn's connections to the guest)
//!                SYN ─▶ dropped                                     (the packet socket has seen it)
//!                TCP, UDP ─▶ marked, to the transparent sockets
//!                all else ─▶ dropped                                (the packet socket has seen echo requests)
//!  what is marked is for this host, whatever its address: rule and route
//! ```

use std::io;
use std::net::Ipv4Addr;

use nix::sys::socket::SockProtocol;

use crate::netlink::{Attributes, Messages, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, Netlink};

/// Where packets go: the ports of the transparent sockets, which listen on [`LISTEN_ADDRESS`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) tcp: u16,
    pub(crate) udp: u16,
}

/// Makes the table in the calling thread's namespace. `tap` is the guest's link, and `host` the address of its end here.
pub(crate) fn make_table(tap: &str, host: Ipv4Addr, ports: Ports) -> io::Result<()> {
    let mut batch = Messages::default();
    batch.add(NFNL_MSG_BATCH_BEGIN, 0, &BATCH, |_| ());
    batch.add(message(NFT_MSG_NEWTABLE), NLM_F_CREATE | NLM_F_ACK, &IPV4, |table| {
        _ = table.text(NFTA_TABLE_NAME, TABLE)
    });
    batch.add(message(NFT_MSG_NEWCHAIN), NLM_F_CREATE | NLM_F_ACK, &IPV4, |chain| {
        chain.text(NFTA_CHAIN_TABLE, TABLE).text(NFTA_CHAIN_NAME, CHAIN).text(NFTA_CHAIN_TYPE, "filter");
        chain.nested(NFTA_CHAIN_HOOK, |hook| {
            let mangle = PRIORITY_MANGLE.cast_unsigned();
            hook.number(NFTA_HOOK_HOOKNUM, NF_INET_PRE_ROUTING).number(NFTA_HOOK_PRIORITY, mangle);
        });
    });
    let mut rule = |expressions: &dyn Fn(&mut Attributes)| {
        batch.add(message(NFT_MSG_NEWRULE), NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, &IPV4, |rule| {
            rule.text(NFTA_RULE_TABLE, TABLE).text(NFTA_RULE_CHAIN, CHAIN);
            rule.nested(NFTA_RULE_EXPRESSIONS, expressions);
        });
    };
    rule(&|e| {
        from_link(e, "lo", Is::Equal);
        meta_is(e, META_MARK, &MARK.to_le_bytes(), Is::Equal);
        meta_is(e, META_L4PROTO, &[TCP], Is::Equal);
        to_socket(e, ports.tcp);
        verdict(e, NF_ACCEPT);
    });
    rule(&|e| {
        from_link(e, tap, Is::Other);
        verdict(e, NF_ACCEPT);
    });
    rule(&|e| {
        payload(e, NETWORK_HEADER, IPV4_DESTINATION, 4);
        compare(e, &host.octets(), Is::Equal);
        verdict(e, NF_ACCEPT);
    });
    rule(&|e| {
        meta_is(e, META_L4PROTO, &[TCP], Is::Equal);
        payload(e, TRANSPORT_HEADER, TCP_FLAGS, 1);
        bits(e, TCP_SYN | TCP_ACK);
        compare(e, &[TCP_SYN], Is::Equal);
        verdict(e, NF_DROP);
    });
    for (protocol, port) in [(TCP, ports.tcp), (UDP, ports.udp)] {
        rule(&|e| {
            meta_is(e, META_L4PROTO, &[protocol], Is::Equal);
            to_socket(e, port);
            set_mark(e);
            verdict(e, NF_ACCEPT);
        });
    }
    rule(&|e| verdict(e, NF_DROP));
    batch.add(NFNL_MSG_BATCH_END, 0, &BATCH, |_| ());
    // The table, the chain, and seven rules.
    Netlink::open(SockProtocol::NetlinkNetFilter)?.send(&batch, 9)
}

/// Has the loopback take what comes from addresses that are not behind it, such as a guest's SYN that is sent on: a filter
/// that is set for all links of the host would drop it. (By netlink, since `/proc/sys` cannot be written in a container.)
pub(crate) fn loosen_loopback() -> io::Result<()> {
    let mut message = Messages::default();
    let mut link = [0; 16]; // `struct ifinfomsg`
    link[4..8].copy_from_slice(&LOOPBACK_INDEX.to_le_bytes());
    message.add(RTM_SETLINK, NLM_F_ACK, &link, |link| {
        link.nested(IFLA_AF_SPEC, |families| {
            families.nested(AF_INET, |inet| {
                inet.nested(IFLA_INET_CONF, |settings| {
                    settings.bytes(IPV4_DEVCONF_RP_FILTER, &LOOSE.to_le_bytes());
                });
            });
        });
    });
    Netlink::open(SockProtocol::NetlinkRoute)?.send(&message, 1)
}

#[derive(Debug, Clone, Copy)]
enum Is {
    Equal,
    Other,
}

fn expression(e: &mut Attributes, name: &str, data: impl FnOnce(&mut Attributes)) {
    e.nested(NFTA_LIST_ELEM, |e| {
        e.text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data);
    });
}

fn meta(e: &mut Attributes, key: u32) {
    expression(e, "meta", |e| _ = e.number(NFTA_META_DREG, REGISTER).number(NFTA_META_KEY, key));
}

fn meta_is(e: &mut Attributes, key: u32, value: &[u8], is: Is) {
    meta(e, key);
    compare(e, value, is);
}

fn from_link(e: &mut Attributes, name: &str, is: Is) {
    // Names are compared with all that follows them.
    let mut padded = [0; 16];
    padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    meta_is(e, META_IIFNAME, &padded, is);
}

fn compare(e: &mut Attributes, value: &[u8], is: Is) {
    expression(e, "cmp", |e| {
        e.number(NFTA_CMP_SREG, REGISTER).number(NFTA_CMP_OP, if matches!(is, Is::Equal) { CMP_EQ } else { CMP_NEQ });
        e.nested(NFTA_CMP_DATA, |data| _ = data.bytes(NFTA_DATA_VALUE, value));
    });
}

fn payload(e: &mut Attributes, base: u32, offset: u32, len: u32) {
    expression(e, "payload", |e| {
        e.number(NFTA_PAYLOAD_DREG, REGISTER).number(NFTA_PAYLOAD_BASE, base);
        e.number(NFTA_PAYLOAD_OFFSET, offset).number(NFTA_PAYLOAD_LEN, len);
    });
}

fn bits(e: &mut Attributes, mask: u8) {
    expression(e, "bitwise", |e| {
        e.number(NFTA_BITWISE_SREG, REGISTER).number(NFTA_BITWISE_DREG, REGISTER).number(NFTA_BITWISE_LEN, 1);
        e.nested(NFTA_BITWISE_MASK, |data| _ = data.bytes(NFTA_DATA_VALUE, &[mask]));
        e.nested(NFTA_BITWISE_XOR, |data| _ = data.bytes(NFTA_DATA_VALUE, &[0]));
    });
}

fn immediate(e: &mut Attributes, register: u32, value: &[u8]) {
    expression(e, "immediate", |e| {
        e.number(NFTA_IMMEDIATE_DREG, register);
        e.nested(NFTA_IMMEDIATE_DATA, |data| _ = data.bytes(NFTA_DATA_VALUE, value));
    });
}

fn verdict(e: &mut Attributes, code: u32) {
    expression(e, "immediate", |e| {
        e.number(NFTA_IMMEDIATE_DREG, REGISTER_VERDICT);
        e.nested(NFTA_IMMEDIATE_DATA, |data| {
            data.nested(NFTA_DATA_VERDICT, |verdict| _ = verdict.number(NFTA_VERDICT_CODE, code));
        });
    });
}

fn set_mark(e: &mut Attributes) {
    immediate(e, REGISTER, &MARK.to_le_bytes());
    expression(e, "meta", |e| _ = e.number(NFTA_META_KEY, META_MARK).number(NFTA_META_SREG, REGISTER));
}

/// `tproxy to 127.0.0.1:port`.
fn to_socket(e: &mut Attributes, port: u16) {
    immediate(e, REGISTER, &LISTEN_ADDRESS.octets());
    let [low, high] = port.to_le_bytes();
    immediate(e, REGISTER_2, &[high, low]);
    expression(e, "tproxy", |e| {
        e.number(NFTA_TPROXY_FAMILY, NFPROTO_IPV4.into());
        e.number(NFTA_TPROXY_REG_ADDR, REGISTER).number(NFTA_TPROXY_REG_PORT, REGISTER_2);
    });
}

const fn message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// The mark of packets that are for the transparent sockets.
pub(crate) const MARK: u32 = 1;
/// The table of routes for what is marked.
pub(crate) const ROUTES: u32 = 100;
pub(crate) const LISTEN_ADDRESS: Ipv4Addr = Ipv4Addr::LOCALHOST;
const TABLE: &str = "wrenn";
const CHAIN: &str = "guest";

/// The first link of each namespace.
const LOOPBACK_INDEX: u32 = 1;
/// RFC 3704.
const LOOSE: u32 = 2;

// include/uapi/linux/rtnetlink.h, if_link.h and ip.h
const RTM_SETLINK: u16 = 19;
const IFLA_AF_SPEC: u16 = 26;
const AF_INET: u16 = 2;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;

// include/uapi/linux/netfilter/nfnetlink.h, netfilter.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFPROTO_IPV4: u8 = 2;
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// Before routing is decided (include/uapi/linux/netfilter_ipv4.h).
const PRIORITY_MANGLE: i32 = -150;
/// `struct nfgenmsg`: family, version, and a number in network order.
const IPV4: [u8; 4] = [NFPROTO_IPV4, 0, 0, 0];
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
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_TPROXY_FAMILY: u16 = 1;
const NFTA_TPROXY_REG_ADDR: u16 = 2;
const NFTA_TPROXY_REG_PORT: u16 = 3;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_L4PROTO: u32 = 16;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const REGISTER_2: u32 = 2;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

// RFC 791, 9293, and IANA's protocol numbers
const IPV4_DESTINATION: u32 = 16;
const TCP_FLAGS: u32 = 13;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
const TCP: u8 = 6;
const UDP: u8 = 17;
