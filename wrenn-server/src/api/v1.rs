//! The native API.

mod answer;
mod body;
mod commands;
mod files;
mod network;
mod owner;
pub(crate) mod router;
mod sandboxes;
mod snapshots;
