//! MicroVM sandboxes as a library.
#![warn(missing_docs)]

pub mod image;
