//! Network slots: what one sandbox's VM is plugged into.
//!
//! A [`Slot`] is a network namespace that has no name and no owner but its file descriptors, with one tap in it. The
//! host side of the tap has [`HOST_ADDRESS`], and every guest has [`GUEST_ADDRESS`]: the namespaces keep them apart,
//! so that a restored guest needs no new address.
//!
//! ```text
//!   wrenn ──Slot::connect──▶ socket made inside the namespace ──▶ tap ──▶ guest eth0
//!   VMM   ──inherits───────▶ Tap::into_queue (a descriptor)   ──▶ tap
//!   or it runs inside and opens Tap::NAME, after Tap::leave_to ──▶ tap
//! ```
//!
//! The kernel frees the namespace, the tap and the addresses with the last descriptor, so neither a failed step nor a
//! `kill -9` leaves anything behind. There is no route out of a slot: a guest reaches the host end of its tap, where
//! nothing listens, and nothing else.
#![warn(missing_docs)]

mod error;
mod netns;
mod slot;
mod sys;

pub use error::NetError;
pub use slot::{GUEST_ADDRESS, GUEST_MAC, HOST_ADDRESS, PREFIX_LEN, Slot, Tap};
