//! What a rule of nftables asks of a packet, and does with it: the expressions that rules are made of.

use std::net::IpAddr;

use crate::netlink::Attributes;

#[derive(Debug, Clone, Copy)]
pub(super) enum Is {
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

pub(super) fn meta_is(e: &mut Attributes, key: u32, value: &[u8], is: Is) {
    meta(e, key);
    compare(e, value, is);
}

pub(super) fn from_link(e: &mut Attributes, name: &str, is: Is) {
    // Names are compared with all that follows them.
    let mut padded = [0; 16];
    padded.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    meta_is(e, META_IIFNAME, &padded, is);
}

pub(super) fn compare(e: &mut Attributes, value: &[u8], is: Is) {
    expression(e, "cmp", |e| {
        e.number(NFTA_CMP_SREG, REGISTER).number(NFTA_CMP_OP, if matches!(is, Is::Equal) { CMP_EQ } else { CMP_NEQ });
        e.nested(NFTA_CMP_DATA, |data| _ = data.bytes(NFTA_DATA_VALUE, value));
    });
}

pub(super) fn payload(e: &mut Attributes, base: u32, offset: u32, len: u32) {
    expression(e, "payload", |e| {
        e.number(NFTA_PAYLOAD_DREG, REGISTER).number(NFTA_PAYLOAD_BASE, base);
        e.number(NFTA_PAYLOAD_OFFSET, offset).number(NFTA_PAYLOAD_LEN, len);
    });
}

pub(super) fn bits(e: &mut Attributes, mask: u8) {
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

pub(super) fn verdict(e: &mut Attributes, code: u32) {
    expression(e, "immediate", |e| {
        e.number(NFTA_IMMEDIATE_DREG, REGISTER_VERDICT);
        e.nested(NFTA_IMMEDIATE_DATA, |data| {
            data.nested(NFTA_DATA_VERDICT, |verdict| _ = verdict.number(NFTA_VERDICT_CODE, code));
        });
    });
}

pub(super) fn set_mark(e: &mut Attributes, mark: u32) {
    immediate(e, REGISTER, &mark.to_le_bytes());
    expression(e, "meta", |e| _ = e.number(NFTA_META_KEY, META_MARK).number(NFTA_META_SREG, REGISTER));
}

/// `tproxy to ADDRESS:port`, for packets of the address' version of IP.
pub(super) fn to_socket(e: &mut Attributes, address: IpAddr, port: u16) {
    let family = match address {
        IpAddr::V4(address) => {
            immediate(e, REGISTER, &address.octets());
            NFPROTO_IPV4
        }
        IpAddr::V6(address) => {
            immediate(e, REGISTER, &address.octets());
            NFPROTO_IPV6
        }
    };
    let [low, high] = port.to_le_bytes();
    immediate(e, REGISTER_PORT, &[high, low]);
    expression(e, "tproxy", |e| {
        e.number(NFTA_TPROXY_FAMILY, family.into());
        e.number(NFTA_TPROXY_REG_ADDR, REGISTER).number(NFTA_TPROXY_REG_PORT, REGISTER_PORT);
    });
}

// include/uapi/linux/netfilter.h
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;

// include/uapi/linux/netfilter/nf_tables.h
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
pub(super) const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
pub(super) const META_L4PROTO: u32 = 16;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;
/// Each has sixteen bytes.
const REGISTER_PORT: u32 = 2;
