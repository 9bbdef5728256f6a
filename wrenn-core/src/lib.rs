//! MicroVM sandboxes as a library.
#![warn(missing_docs)]
