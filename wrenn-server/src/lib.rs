//! wrenn for operators: what `wrenn-server` does, for other programs to call.
#![warn(missing_docs)]

pub mod packages;
pub mod setup;
