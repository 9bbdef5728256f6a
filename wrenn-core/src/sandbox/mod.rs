//! A sandbox: one task owns what is behind it, and handles send it requests.

pub(crate) mod alive;
pub(crate) mod boots;
pub(crate) mod countdown;
pub(crate) mod event;
#[cfg(test)]
pub(crate) mod fake;
mod fork;
pub(crate) mod handle;
mod inbox;
pub(crate) mod many;
pub(crate) mod metrics;
mod network;
pub(crate) mod paused;
pub(crate) mod registry;
mod request;
pub(crate) mod shared;
pub(crate) mod sleepers;
pub(crate) mod start;
mod task;
pub(crate) mod template;
pub(crate) mod turns;
pub(crate) mod wake;
