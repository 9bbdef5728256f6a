//! `filesystem.Filesystem`: entries of the guest's file system, as the caller's user may see and change them.
//!
//! ```text
//!  Service -> as_user --+-> entry    (one entry, described)
//!                       +-> listing  (what is in a directory)
//!                       +-> tree     (make, move, remove)
//!          -> watch             (changes, as they happen)
//! ```

mod copying;
mod entry;
mod error;
mod listing;
mod names;
mod service;
mod transfer;
mod tree;
mod watch;

pub(super) use service::Service;
