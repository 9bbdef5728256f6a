//! A guest's network, as the host sees it: the slot that a machine is plugged into.

pub(crate) mod slot;
