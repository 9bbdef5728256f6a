//! EROFS, the read-only file system of Linux, written without compression: what a guest's base is made of.
//!
//! ```text
//!  block 0        superblock
//!  block 1..      content of files, which the caller puts there itself     Content::Blocks
//!  then           directories and links that are too long for their inode  write
//!  then           inodes, each with its attributes and with its content if that is short
//! ```
//!
//! # Why it is our own
//!
//! `erofs-rs` reads alone. `composefs` writes trees whose files are elsewhere, and no content. `mkfs.erofs` of Debian 12
//! takes a directory, which would have to be unpacked first, by root. The format is small without compression.
//!
//! # Compatibility
//!
//! No incompatible feature is used, so Linux 5.4 and later mount it, and the checksum of the superblock is checked by
//! those that know it. The same tree gives the same bytes: there is no time and no random number in it, and the UUID is
//! zero. <https://docs.kernel.org/filesystems/erofs.html>

mod directory;
mod format;
#[cfg(test)]
mod tests;
mod tree;
mod write;
mod xattr;

pub(crate) use format::BLOCK;
pub(crate) use tree::{Device, Inode, InodeId, Kind, Meta, NAME_BYTES_MAX, SYMLINK_BYTES_MAX, Time, Tree};
pub(crate) use write::{Content, write};
pub(crate) use xattr::check as check_attribute;
