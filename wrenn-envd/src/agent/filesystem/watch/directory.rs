use std::{io, os::fd::OwnedFd, path::Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Opens the directory `below` of the directory at `root`. The root may be named by a link; no link below it is followed.
pub(super) fn open(root: &Path, below: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    if below.as_os_str().is_empty() {
        return Ok(openat(CWD, root, flags | OFlags::RDONLY, Mode::empty())?);
    }
    let root = openat(CWD, root, flags | OFlags::PATH, Mode::empty())?;
    Ok(openat2(&root, below, flags | OFlags::RDONLY, Mode::empty(), ResolveFlags::NO_SYMLINKS)?)
}
