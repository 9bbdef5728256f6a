//! `<data_dir>/images`: how an image gets its name, and how builders keep out of each other's way.
//!
//! ```text
//! images/.lock-base            held by whoever builds `base`
//! images/.tmp-base@XXXXXX/     staged; swept by the next build, which holds the lock
//! images/base/                 published by one rename
//! images/base@1a2b3c4d5e6f/    replaced, and kept: paused sandboxes have its base under them
//! ```
//!
//! A dot or an `@` is in no image's name, so none of these can be taken for another's.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use tempfile::TempDir;

use crate::image::error::ImageError;
use crate::image::manifest::{FILES, MANIFEST};
use crate::image::name::Name;
use crate::image::step::Step;

/// The right to build one image.
#[derive(Debug)]
pub(super) struct Store {
    images: PathBuf,
    name: Name,
    _lock: File,
}

impl Store {
    /// Waits until no other process builds this image.
    pub(super) async fn lock(
        data_dir: &Path,
        name: &Name,
        progress: &mut (dyn FnMut(&Step) + Send),
    ) -> Result<Self, ImageError> {
        let images = images(data_dir);
        fs::create_dir_all(&images).map_err(ImageError::io("create", &images))?;
        let path = images.join(format!(".lock-{}", name.as_str()));
        let lock = File::create(&path).map_err(ImageError::io("create", &path))?;
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
        Ok(Self { images, name: name.clone(), _lock: lock })
    }

    /// A private directory for an image in the making, removed on drop. What a killed build left goes first.
    pub(super) fn stage(&self) -> Result<TempDir, ImageError> {
        let prefix = format!(".tmp-{}@", self.name.as_str());
        let io = || ImageError::io("prepare", &self.images);
        for entry in fs::read_dir(&self.images).map_err(io())? {
            let entry = entry.map_err(io())?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(entry.path()).map_err(ImageError::io("remove", &entry.path()))?;
            }
        }
        // Mode 0700: the tree inside has programs that are set-user-id root.
        tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.images).map_err(io())
    }

    /// Gives the staged files their name: durable first, then visible, in one rename. An image that is replaced stays
    /// under its digest if `keep` has one.
    pub(super) fn publish(&self, staged: TempDir, keep: Option<&str>) -> Result<(), ImageError> {
        let path = self.images.join(self.name.as_str());
        let staging = staged.path();
        seal(staging).map_err(ImageError::io("flush", staging))?;
        if let Some(digest) = keep {
            let kept = self.images.join(kept_name(&self.name, digest));
            self.keep(&path, &kept).map_err(ImageError::io("keep", &path))?;
        }
        let flags = if path.exists() { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
        renameat2(AT_FDCWD, staging, AT_FDCWD, &path, flags)
            .map_err(io::Error::from)
            .and_then(|()| sync(&self.images))
            .map_err(ImageError::io("publish", &path))?;
        // After an exchange it is the replaced image, otherwise there is nothing left of it.
        drop(staged);
        Ok(())
    }

    /// Links the files of `path` into `kept`. Links, so that there is no moment without the image.
    fn keep(&self, path: &Path, kept: &Path) -> io::Result<()> {
        if kept.exists() {
            return Ok(());
        }
        let prefix = format!(".tmp-{}@", self.name.as_str());
        let staged = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.images)?;
        for name in FILES.into_iter().chain([MANIFEST]) {
            fs::hard_link(path.join(name), staged.path().join(name))?;
        }
        fs::set_permissions(staged.path(), Permissions::from_mode(0o755))?;
        sync(staged.path())?;
        fs::rename(staged.path(), kept)
    }
}

/// Where a data directory has its images.
pub(super) fn images(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}

/// The directory name of a replaced image.
pub(super) fn kept_name(name: &Name, digest: &str) -> String {
    let short = digest.get(..KEPT_DIGITS).unwrap_or(digest);
    format!("{}@{short}", name.as_str())
}

/// Makes the files durable and readable: the VMM runs as another user.
fn seal(staging: &Path) -> io::Result<()> {
    for name in FILES.into_iter().chain([MANIFEST]) {
        let file = File::open(staging.join(name))?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
    }
    fs::set_permissions(staging, Permissions::from_mode(0o755))?;
    sync(staging)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

const LOCK_POLL: Duration = Duration::from_millis(200);
const KEPT_DIGITS: usize = 12;
