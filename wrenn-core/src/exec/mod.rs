//! One process of a guest, run through the agent's client alone: what the guest's own set-up and a sandbox's commands
//! share.

pub(crate) mod collect;
pub(crate) mod event;
pub(crate) mod signal;
