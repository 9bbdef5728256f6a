//! What the operator of a server asks it, and what it tells: whether it is ready, what it counts, and its log.

pub mod log;
mod metrics;
pub(crate) mod peer;
mod process;
mod ready;
pub(crate) mod request_id;
pub(crate) mod requests;
pub(crate) mod router;
#[cfg(feature = "otel")]
mod spans;
pub(crate) mod state;
mod traffic;
mod world;
