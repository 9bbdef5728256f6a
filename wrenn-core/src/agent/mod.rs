//! The host's side of the guest's agent.
//!
//! ```text
//!  AgentClient --+-- process.Process ----------- (calls) --+
//!                +-- filesystem.Filesystem, /files (files) +
//!                +-- /init, /health, /freeze --------------+--> Connections --> Connector --> the slot's namespace --> guest
//! ```
//!
//! Each call that is under way has its own connection. So a process whose output is not read waits, and no other call
//! does.

pub(crate) mod activity;
mod calls;
pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod connector;
pub(crate) mod error;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod files;
mod liveness;
pub(crate) mod metrics;
pub(crate) mod process;
pub(crate) mod progress;
pub(crate) mod words;
