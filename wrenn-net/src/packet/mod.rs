//! Packets that are made by hand: a guest's SYN once more, and answers from addresses that are not here.

mod datagram;
mod echo;
mod ip;
mod syn;
mod unreachable;

pub(crate) use datagram::{datagram, undelivered};
pub(crate) use echo::{Echo, EchoMessage, payload_of};
pub(crate) use syn::{Syn, provocation};
pub(crate) use unreachable::Unreachable;
