//! A move that the kernel cannot do by a rename: to another file system, and of a directory of an overlay's base image.

use std::{
    fs::{self, DirBuilder, File, FileTimes, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::agent::disk::{copy::copy_contents, metadata};

/// Copies `source` beside `destination`, puts the copy in place in one step, and removes `source`. One that fails before
/// that leaves all as it was.
pub(super) fn transfer(source: &Path, destination: &Path) -> io::Result<()> {
    let staging = Staging::beside(destination);
    copy(source, &staging.0)?;
    fs::rename(&staging.0, destination)?;
    if fs::symlink_metadata(source)?.is_dir() { fs::remove_dir_all(source) } else { fs::remove_file(source) }
}

/// A copy that goes unless it was renamed.
struct Staging(PathBuf);

impl Staging {
    fn beside(destination: &Path) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(destination.with_file_name(format!(".wrenn-move-{}-{number}", std::process::id())))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // It is a directory, or a file, or in place.
        if fs::remove_dir_all(&self.0).is_err() {
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(from)?;
    if found.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return own(to, &found);
    }
    if found.is_dir() {
        DirBuilder::new().mode(0o700).create(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if found.is_file() {
        let copied = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to)?;
        copy_contents(&File::open(from)?, &copied, 0)?;
    } else {
        let message = format!("{} is a device, a pipe or a socket, which is not copied", from.display());
        return Err(io::Error::new(io::ErrorKind::CrossesDevices, message));
    }
    own(to, &found)?;
    let copied = File::open(to)?;
    metadata::write(&copied, &metadata::read(from))?;
    copied.set_permissions(found.permissions())?;
    copied.set_times(FileTimes::new().set_modified(found.modified()?))
}

/// Gives a copy the owner of what it was made from, where the user may.
fn own(path: &Path, found: &Metadata) -> io::Result<()> {
    match lchown(path, Some(found.uid()), Some(found.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        owned => owned,
    }
}
