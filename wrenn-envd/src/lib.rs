//! The guest agent, and the wire types that hosts share with it.
//!
//! A host depends on this crate for the wire alone: [`proto`], [`InitRequest`] and the constants below, and the generated
//! client with the `client` feature. The agent itself is behind the `agent` feature, and is built into one static binary
//! that is the guest's PID 1.
#![warn(missing_docs)]

#[cfg(feature = "agent")]
pub mod agent;
mod guest_event;
mod init_request;
mod metrics_response;
pub mod proto;
mod protocol;
mod timestamp;

pub use guest_event::{EventsResponse, GuestEvent, GuestEventKind};
pub use init_request::{InitRequest, VolumeMount};
pub use metrics_response::MetricsResponse;
pub use protocol::{
    ACCESS_TOKEN_HEADER, AGENT_PORT, ARCHIVES_FEATURE, FEATURES_HEADER, GUEST_ADDRESS, GUEST_PREFIX_LENGTH,
    PROTOCOL_VERSION, TAP_ADDRESS, VERSION_HEADER,
};
pub use timestamp::{Timestamp, TimestampError};
