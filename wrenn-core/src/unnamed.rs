//! Files without a name: they go with their last descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A file that a driver may give a name for a moment, which `tempfile` excludes.
pub(crate) fn unnamed_file(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    match options.open(directory) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT)) => {
            tempfile::tempfile_in(directory)
        }
        opened => opened,
    }
}

/// A file with the same storage, where the file system can do that.
pub(crate) fn clone(file: &File, directory: &Path) -> io::Result<File> {
    let clone = unnamed_file(directory)?;
    rustix::fs::ioctl_ficlone(&clone, file)?;
    Ok(clone)
}
