//! Virtual machine monitors: the interface that wrenn drives them by, and a driver for each.
//!
//! ```text
//!  Vmm::boot ────────────────────────────────────┐
//!                                                ▼         ┌── resume ──┐
//!  Vmm::stand_by ─▶ Standby ── restore ──▶ Machine (stopped, describe)  ▼
//!                                                ▲                   running
//!                                       save ────┘◀─ stop ── save_ahead ┘        kill, or the VMM's own end, from anywhere
//! ```

pub(crate) mod console;
mod devices;
pub(crate) mod driver;
pub(crate) mod exit;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod firecracker;
pub(crate) mod identity;
mod inject;
mod launch;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod metadata;
mod origin;
pub(crate) mod paging;
pub(crate) mod parts;
pub(crate) mod phases;
pub(crate) mod probe;
mod process;
pub(crate) mod qemu;
pub(crate) mod rehearsal;
pub(crate) mod residents;
pub(crate) mod saved;
pub(crate) mod shape;
pub(crate) mod standbys;
pub(crate) mod tracking;
mod trial;
pub(crate) mod tsc;
mod userfaultfd;
pub(crate) mod ways;
