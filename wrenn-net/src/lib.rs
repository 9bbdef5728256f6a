//! Network slots: what one sandbox's VM is plugged into.
//!
//! A [`Slot`] is a network namespace that has no name and no owner but its file descriptors, with one tap in it. The
//! host side of the tap has [`HOST_ADDRESS`], and every guest has [`GUEST_ADDRESS`]: the namespaces keep them apart,
//! so that a restored guest needs no new address. Where the kernel has IPv6, they have [`HOST_ADDRESS_V6`] and
//! [`GUEST_ADDRESS_V6`] as well.
//!
//! ```text
//!   wrenn ──Slot::connect──▶ socket made inside the namespace ──▶ tap ──▶ guest eth0
//!   VMM   ──inherits───────▶ Tap::into_queue (a descriptor)   ──▶ tap
//!   or it runs inside and opens Tap::NAME, after Tap::leave_to ──▶ tap
//! ```
//!
//! A [`SlotPool`] makes slots before they are needed.
//!
//! The kernel frees the namespace, the tap and the addresses with the last descriptor, so neither a failed step nor a
//! `kill -9` leaves anything behind. There is no route out of a slot. A guest reaches the host end of its tap, where
//! nothing listens, and what its [way out](Egress) connects it to.
#![warn(missing_docs)]

mod egress;
mod error;
mod gate;
mod netlink;
mod netns;
mod own;
mod packet;
mod packet_socket;
mod policy;
mod pool;
mod rules;
mod slot;
mod sys;

pub use egress::{
    Authority, Budget, Destination, Egress, EgressBuilder, EgressCounters, Interceptor, Limits, Names, OpenConnection,
    Refused, Secret, SecretFuture, SecretSource,
};
pub use error::NetError;
pub use gate::Gate;
pub use policy::{NetworkPolicy, PolicyEntry, PolicyError, Protocol, ProxyFault, Refusal, Rule, UpstreamProxy};
pub use pool::SlotPool;
pub use slot::{
    GUEST_ADDRESS, GUEST_ADDRESS_V6, GUEST_MAC, HOST_ADDRESS, HOST_ADDRESS_V6, NAMESERVER, PREFIX_LEN, PREFIX_LEN_V6,
    Slot, Tap,
};

/// What the repository's fuzzer calls. Not part of the API.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzz {
    pub use crate::egress::fuzz::{first_bytes, packets, proxy_answers, questions};
}

/// The example of the README is compiled, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
