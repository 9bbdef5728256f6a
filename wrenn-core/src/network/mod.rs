//! A guest's network, as the host sees it: a slot that a machine is plugged into, and the way to the guest's ports.

pub(crate) mod connector;
pub(crate) mod slot;
