//! Processes in a guest, in the manner of [`std::process`].

pub(crate) mod child;
pub(crate) mod command;
pub(crate) mod input;
mod link;
pub(crate) mod list;
pub(crate) mod output;
