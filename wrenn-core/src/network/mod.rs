//! A guest's network, as the host sees it: the slot that a machine is plugged into, and its way out.

pub(crate) mod listener;
pub(crate) mod port_stream;
pub(crate) mod publish;
pub(crate) mod refusals;
pub(crate) mod secrets;
pub(crate) mod slot;
pub(crate) mod way_out;
