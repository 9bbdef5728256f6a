//! A memory disk of a test's own.

use std::{io, path::Path};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A memory disk of `size`, such as "1m", on a directory of its own.
pub(crate) struct MemoryDisk(tempfile::TempDir);

impl MemoryDisk {
    pub(crate) fn mount(size: &str) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let options = format!("size={size}");
        mount(Some("none"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(directory))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for MemoryDisk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}
