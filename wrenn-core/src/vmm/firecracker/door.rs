//! The way into a VMM's [room](super::room) for wrenn, which is outside of its mount namespace.
//!
//! The directory belongs to the VMM's user, and a VMM that was broken into may put there what it likes, at any time.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::vmm::identity::Identity;

/// A room's directory.
#[derive(Debug)]
pub(super) struct Door(OwnedFd);

impl Door {
    pub(super) fn to(directory: File) -> Self {
        Self(directory.into())
    }

    /// A path by which this program reaches a file of the room.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    /// Listens on a socket that the room's owner may connect to.
    pub(super) fn listen(&self, name: &str, owner: Identity) -> io::Result<UnixListener> {
        let path = self.path(name);
        let listener = UnixListener::bind(&path)?;
        chown(&path, Some(owner.uid), Some(owner.gid))?;
        Ok(listener)
    }
}
