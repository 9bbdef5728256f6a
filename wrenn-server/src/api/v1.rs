//! The native API.

mod answer;
mod body;
mod commands;
mod files;
mod owner;
pub(crate) mod router;
mod sandboxes;
mod snapshots;
pub(crate) mod state;
mod time;
