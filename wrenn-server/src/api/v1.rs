//! The native API.

mod answer;
mod body;
mod commands;
mod files;
mod owner;
pub(crate) mod router;
mod sandboxes;
mod snapshots;
mod state;
mod time;
