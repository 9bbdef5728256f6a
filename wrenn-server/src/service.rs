//! What was asked for and what is: the same for each API.

pub mod admission;
pub mod builds;
pub mod carried;
pub mod clock;
pub mod cut;
pub mod egress_proxy;
pub mod error;
pub mod events;
mod history;
pub mod keys;
mod machine;
pub mod meters;
mod network;
pub mod rate;
pub mod readiness;
mod run;
pub mod sandboxes;
pub mod secret;
pub mod tags;
pub mod templates;
pub mod webhooks;
