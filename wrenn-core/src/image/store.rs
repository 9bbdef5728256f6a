//! `<data_dir>/images` and `<data_dir>/kernels`: how an image or a kernel gets its name, and how builders keep out of each
//! other's way.
//!
//! ```text
//! images/.lock-base            held by whoever builds `base`
//! images/.tmp-base@XXXXXX/     staged; swept by the next build, which holds the lock
//! images/base/                 published by one rename
//! images/base@1a2b3c4d5e6f/    replaced, and kept: paused sandboxes have its base under them
//! ```
//!
//! A dot or an `@` is in no image's name, so none of these can be taken for another's.

use std::ffi::OsString;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::image::error::ImageError;
use crate::image::name::Name;
use crate::image::scratch;
use crate::image::step::Step;

/// The right to build one image, or to fetch one kernel.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    name: Name,
    _lock: File,
}

impl Store {
    /// Waits until no other process builds what has this name in `directory`.
    pub(super) async fn lock(
        directory: PathBuf,
        name: &Name,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        let path = directory.join(format!(".lock-{}", name.as_str()));
        let (made, opened) = (directory.clone(), path.clone());
        let lock = blocking(&path, move || {
            fs::create_dir_all(&made).map_err(ImageError::io("create", &made))?;
            File::create(&opened).map_err(ImageError::io("create", &opened))
        })
        .await?;
        let mut told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if told => tokio::time::sleep(LOCK_POLL).await,
                Err(TryLockError::WouldBlock) => {
                    progress(&Step::Waiting);
                    told = true;
                }
                Err(TryLockError::Error(error)) => return Err(ImageError::io("lock", &path)(error)),
            }
        }
        Ok(Self { directory, name: name.clone(), _lock: lock })
    }

    /// A private directory for an image in the making, removed on drop. What a killed build left goes first. Blocks.
    pub(super) fn stage(&self) -> Result<TempDir, ImageError> {
        let prefix = format!(".tmp-{}@", self.name.as_str());
        let io = || ImageError::io("prepare", &self.directory);
        for entry in fs::read_dir(&self.directory).map_err(io())? {
            let entry = entry.map_err(io())?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                scratch::remove(&entry.path()).map_err(ImageError::io("remove", &entry.path()))?;
            }
        }
        // Mode 0700: the tree inside has programs that are set-user-id root.
        tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.directory).map_err(io())
    }

    /// Gives the staged files their name: durable first, then visible, in one rename. An image that is replaced stays
    /// under its digest if `keep` has one.
    pub(super) fn publish(&self, staged: TempDir, keep: Option<&str>) -> Result<(), ImageError> {
        let path = self.directory.join(self.name.as_str());
        let staging = staged.path();
        seal(staging).map_err(ImageError::io("flush", staging))?;
        if let Some(digest) = keep {
            let kept = self.directory.join(kept_name(&self.name, digest));
            self.keep(&path, &kept).map_err(ImageError::io("keep", &path))?;
        }
        let flags = if path.exists() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, staging, AT_FDCWD, &path, flags)
            .map_err(io::Error::from)
            .and_then(|()| sync(&self.directory))
            .map_err(ImageError::io("publish", &path))?;
        // After an exchange it is the replaced image, otherwise there is nothing left of it.
        drop(staged);
        Ok(())
    }

    /// Links the files of `path` into `kept`. Links, so that there is no moment without the image.
    fn keep(&self, path: &Path, kept: &Path) -> io::Result<()> {
        let files = files_in(path)?;
        if files.iter().all(|name| kept.join(name).exists()) {
            return Ok(());
        }
        let prefix = format!(".tmp-{}@", self.name.as_str());
        let staged = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.directory)?;
        for name in files {
            fs::hard_link(path.join(&name), staged.path().join(&name))?;
        }
        fs::set_permissions(staged.path(), Permissions::from_mode(0o755))?;
        sync(staged.path())?;
        // One that lacks files is what somebody began to remove: it goes with the staging directory, whose name it
        // gets.
        let flags = if kept.exists() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, staged.path(), AT_FDCWD, kept, flags)?;
        Ok(())
    }
}

/// Where a data directory has its images.
pub(super) fn images(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}

/// Where a data directory has the layers of OCI images.
pub(super) fn layers(data_dir: &Path) -> PathBuf {
    data_dir.join("layers")
}

/// Where a data directory has the kernels of its images.
pub(super) fn kernels(data_dir: &Path) -> PathBuf {
    data_dir.join("kernels")
}

/// The directory name of a replaced image.
pub(super) fn kept_name(name: &Name, digest: &str) -> String {
    let short = digest.get(..KEPT_DIGITS).unwrap_or(digest);
    format!("{}@{short}", name.as_str())
}

/// Makes the files durable and readable: the VMM runs as another user.
fn seal(staging: &Path) -> io::Result<()> {
    for name in files_in(staging)? {
        let file = File::open(staging.join(name))?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
    }
    fs::set_permissions(staging, Permissions::from_mode(0o755))?;
    sync(staging)
}

/// The names of the files in a directory.
fn files_in(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    entries.collect()
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Does work that blocks, off the runtime's threads. `path` is what it works on.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::io("finish", path)(error.into())),
    }
}

const LOCK_POLL: Duration = Duration::from_millis(200);
const KEPT_DIGITS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::{BASE_EXT4, MANIFEST, files};

    #[tokio::test]
    async fn what_is_kept_is_whole_even_where_somebody_began_to_remove_it() {
        let dir = tempfile::tempdir().unwrap();
        let name = Name::parse("base").unwrap();
        let store = Store::lock(images(dir.path()), &name, &mut |_: &Step| {}).await.unwrap();
        let image = images(dir.path()).join("base");
        fs::create_dir(&image).unwrap();
        for file in files(BASE_EXT4).into_iter().chain([MANIFEST]) {
            fs::write(image.join(file), file).unwrap();
        }
        let kept = images(dir.path()).join("base@0123456789ab");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join(files(BASE_EXT4)[0]), "old").unwrap();
        for _ in 0..2 {
            store.keep(&image, &kept).unwrap();
            for file in files(BASE_EXT4).into_iter().chain([MANIFEST]) {
                assert_eq!(fs::read_to_string(kept.join(file)).unwrap(), file);
            }
        }
        assert_eq!(fs::read_dir(images(dir.path())).unwrap().count(), 3, "the lock and the two images");
    }
}
