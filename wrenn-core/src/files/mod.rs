//! The guest's files, in the manner of `tokio::fs`.

pub(crate) mod entry;
pub(crate) mod handle;
pub(crate) mod stream;
pub(crate) mod watch;
