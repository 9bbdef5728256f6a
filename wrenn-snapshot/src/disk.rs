//! What a store asks of the disk below it: names, bytes, and when they are durable.
//!
//! The files are the kernel's in any case: those of a directory ([`LocalDisk`](local::LocalDisk)), or nameless ones in memory
//! ([`MemoryDisk`](memory::MemoryDisk)). So reading, locking and copying inside the kernel are the same code for both. The tests have a
//! third, which loses power and fails.

use std::{
    fmt,
    fs::File,
    io::{self, IoSlice},
    path::Path,
};

#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod held_up;
pub(crate) mod local;
pub(crate) mod memory;

/// A tree of directories and files. What has not been synced may be lost when the power goes, and only that.
pub(crate) trait Disk: fmt::Debug + Send + Sync {
    /// Opens a file or a directory, for reading, syncing and locking.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// The length of a file in bytes.
    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(self.open(path)?.metadata()?.len())
    }

    /// The names in a directory that are text, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes a file, and opens it for writing.
    fn create_file(&self, path: &Path) -> io::Result<File>;

    /// Opens a file for writing at its start, and makes it if it is not there.
    fn open_to_write(&self, path: &Path) -> io::Result<File>;

    /// Appends some of the bytes of `pieces` to a file made here, and says how many.
    fn write(&self, file: &File, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Makes a file's bytes durable, or a directory's names.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Gives a directory another name, which nothing has, or a file another name, which another file may have until then.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}
