//! The native API.

mod answer;
mod body;
mod commands;
mod owner;
pub(crate) mod router;
mod sandboxes;
mod state;
