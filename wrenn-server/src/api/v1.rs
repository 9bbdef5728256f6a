//! The native API.

mod answer;
mod body;
mod builds;
mod commands;
mod document;
mod encoding;
mod events;
mod exact;
mod files;
mod network;
mod owner;
mod path;
mod refusals;
pub(crate) mod router;
mod sandboxes;
mod snapshots;
mod streams;
mod tags;
mod variables;
mod webhooks;
