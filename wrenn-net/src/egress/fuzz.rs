//! What the repository's fuzzer calls: each function takes any bytes, and panics where a promise is broken.

use std::net::IpAddr;

use etherparse::{Ipv4Slice, Ipv6Slice, TcpSlice};
use hickory_resolver::proto::op::{Message, MessageType};
use hickory_resolver::proto::rr::Name;

use crate::egress::dns::{self, Asked};
use crate::egress::proxy::fuzz::check_answers;
use crate::egress::sniff::{Told, told};
use crate::packet::{Echo, EchoMessage, Syn, Unreachable, payload_of};
use crate::policy::NetworkPolicy;

/// What a connection begins with: what is told once is told still when more has come, and a name has no capital letter.
///
/// # Panics
/// A promise is broken.
pub fn first_bytes(bytes: &[u8]) {
    let whole = told(bytes);
    if let Some(Told::Name(name)) = &whole {
        assert!(!name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase()), "{name:?}");
        // What is no name is not resolved.
        Name::from_ascii(name).iter().for_each(|resolved| check_name(name, resolved));
    }
    for len in cuts(bytes.len()) {
        let part = told(&bytes[..len]);
        assert!(part.is_none() || part == whole, "{len} bytes tell {part:?}, and all {whole:?}");
    }
}

/// A question to DNS: it is asked for a name, or has an answer, or gets none; and an answer can be sent, and is one to it.
///
/// # Panics
/// A promise is broken.
pub fn questions(bytes: &[u8]) {
    let Ok(question) = Message::from_vec(bytes) else {
        if let Some(answer) = dns::unreadable(bytes) {
            check_answer(&answer, bytes);
        }
        return;
    };
    match dns::read(&question) {
        None => assert_eq!(question.metadata.message_type, MessageType::Response),
        Some(Asked::Answered(answer)) => check_answer(&answer, bytes),
        Some(Asked::Name { query, name, answer }) => {
            check_answer(&answer, bytes);
            check_name(&name, &query.name);
        }
    }
}

/// A packet of the guest's: it is a first packet of a connection, or an echo request, or neither, and never both. What is
/// made of it for others says the same, and a part of it says nothing else.
///
/// # Panics
/// A promise is broken.
pub fn packets(bytes: &[u8]) {
    let (syn, echo) = (Syn::read(bytes), Echo::read(bytes));
    assert!(syn.is_none() || echo.is_none(), "{syn:?} and {echo:?}");
    if let Some(syn) = &syn {
        check_syn(syn);
    }
    if let Some(echo) = &echo {
        check_echo(echo);
    }
    for len in cuts(bytes.len()) {
        let part = &bytes[..len];
        let ends = |syn: &Syn| (syn.from, syn.to);
        assert!(Syn::read(part).is_none_or(|part| Some(ends(&part)) == syn.as_ref().map(ends)), "{len} bytes");
        assert!(Echo::read(part).is_none_or(|part| Some(&part) == echo.as_ref()), "{len} bytes");
    }
}

/// What a proxy answers, by each protocol, with and without credentials: a connection is there when the answer said so, and
/// no byte that follows the answer is taken.
///
/// # Panics
/// A promise is broken.
pub fn proxy_answers(bytes: &[u8]) {
    check_answers(bytes);
}

/// What an entry allows is below that entry's name, as DNS sees it. `resolved` is what is asked for `name`.
fn check_name(name: &str, resolved: &Name) {
    let policy = NetworkPolicy::closed().allow(["*.example.com", "example.org"]).expect("entries");
    if !policy.may_ask(name) {
        return;
    }
    let zones = ["example.com", "example.org"].map(|zone| Name::from_ascii(zone).expect("a name"));
    assert!(zones.iter().any(|zone| zone.zone_of(resolved)), "{name:?} is allowed");
}

/// An answer goes out, whole or cut, and is one to the question of these bytes.
fn check_answer(answer: &Message, question: &[u8]) {
    for answer in [answer.clone(), answer.clone().truncate()] {
        let bytes = answer.to_vec().unwrap_or_else(|error| panic!("{answer:?} cannot be sent: {error}"));
        assert_eq!(bytes.get(..2), question.get(..2), "the number of the question");
        let read = Message::from_vec(&bytes).unwrap_or_else(|error| panic!("{answer:?} cannot be read: {error}"));
        assert_eq!(read.metadata.message_type, MessageType::Response);
    }
}

fn check_syn(syn: &Syn) {
    let whole = syn.whole();
    let again = Syn::read(&whole).unwrap_or_else(|| panic!("{syn:?} is none when it is sent on"));
    assert_eq!((again.from, again.to), (syn.from, syn.to));
    let reset = syn.reset();
    for packet in [&whole, &reset] {
        assert!(has_right_checksum(packet), "{syn:?}");
    }
    check_unreachable(&syn.unreachable(Unreachable::Host), syn.from.ip());
}

fn has_right_checksum(packet: &[u8]) -> bool {
    if let Ok(ip) = Ipv6Slice::from_slice(packet) {
        let tcp = TcpSlice::from_slice(ip.payload().payload).expect("TCP");
        return tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()) == Ok(tcp.checksum());
    }
    let ip = Ipv4Slice::from_slice(packet).expect("IP");
    let tcp = TcpSlice::from_slice(ip.payload().payload).expect("TCP");
    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()) == Ok(tcp.checksum())
}

fn check_echo(echo: &Echo) {
    let message = echo.message(7);
    let sent = EchoMessage { identifier: 7, sequence: echo.sequence, payload: &echo.payload };
    assert_eq!(EchoMessage::read_request(&message, echo.to), Some(sent));
    let reply = echo.reply();
    let read = payload_of(&reply).and_then(|message| EchoMessage::read_reply(message, echo.to));
    assert_eq!(read, Some(EchoMessage { identifier: echo.identifier, ..sent }));
    check_unreachable(&echo.unreachable(Unreachable::Host), echo.from);
}

/// It quotes no more than a header and eight bytes.
fn check_unreachable(packet: &[u8], to: IpAddr) {
    let (destination, most) = match to {
        IpAddr::V4(_) => {
            let ip = Ipv4Slice::from_slice(packet).expect("IP");
            (IpAddr::from(ip.header().destination_addr()), 20 + 8 + 60 + 8)
        }
        IpAddr::V6(_) => {
            let ip = Ipv6Slice::from_slice(packet).expect("IP");
            (IpAddr::from(ip.header().destination_addr()), 40 + 8 + 40 + 8)
        }
    };
    assert_eq!(destination, to);
    assert!(packet.len() <= most, "{} bytes", packet.len());
}

/// Some lengths up to `len`: each of a few bytes, and some of many.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(len / CUTS + 1)
}

const CUTS: usize = 40;
