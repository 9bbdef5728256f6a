//! Files that are open, or about to be.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::PathBuf,
};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};

/// Opens a regular file for reading; `None` for what is something else, which is not opened at all: opening a pipe waits, and
/// opening a device may do anything. Whether a link is followed is for `flags` to say.
pub(in crate::agent) fn regular(
    directory: impl AsFd,
    name: impl AsRef<OsStr>,
    flags: OFlags,
) -> io::Result<Option<File>> {
    let found = openat(directory, name.as_ref(), OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty())?;
    if !is_regular(&fstat(&found)?) {
        return Ok(None);
    }
    reopen(&found, OpenOptions::new().read(true)).map(Some)
}

pub(in crate::agent) fn is_regular(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
}

/// Opens the very file that a descriptor stands for, with the rights of the thread.
pub(in crate::agent) fn reopen(file: &OwnedFd, options: &mut OpenOptions) -> io::Result<File> {
    // A file of the kernel's may have nothing to read yet, which is no reason to wait.
    options.custom_flags(libc::O_NONBLOCK).open(path_of(file))
}

/// A path to the file of a descriptor, or to a name in its directory, for calls that take no descriptor. It is short, however
/// deep the file lies.
pub(in crate::agent) fn path_of(file: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}
