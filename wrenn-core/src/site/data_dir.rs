//! The data directory: what wrenn keeps, and where.
//!
//! ```text
//!  images/NAME/           kernel, initramfs and disks that a template boots from (crate::image)
//!  generations/ID/        memory, drive and device state (wrenn_snapshot)
//!  templates/NAME.json    a name and its generation
//!  booted/KEY.json        the generation that an image was booted into, by image and machine shape
//!  sandboxes/ID.json      a paused sandbox, or the last pause of one that runs
//!  locks/                 which program has which sandbox; who boots what
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::id::{SandboxId, TemplateName};

/// The directory, with every part of it made.
#[derive(Debug, Clone)]
pub(crate) struct DataDir(PathBuf);

/// A lock that the kernel frees when its holder ends, however it ends.
pub(crate) type FileLock = Flock<File>;

impl DataDir {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(Error::io("find", path))?;
        let dir = Self(path);
        for part in ["templates", "booted", "sandboxes", "locks"] {
            let path = dir.0.join(part);
            // Memory images hold whatever the guests knew.
            DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(Error::io("create", &path))?;
        }
        tempfile::tempfile_in(&dir.0).map_err(Error::io("write to", &dir.0))?;
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn generations(&self) -> PathBuf {
        self.0.join("generations")
    }

    pub(crate) fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }

    pub(crate) fn template(&self, name: &TemplateName) -> PathBuf {
        self.templates().join(format!("{name}.json"))
    }

    pub(crate) fn booted(&self) -> PathBuf {
        self.0.join("booted")
    }

    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.0.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes().join(format!("{id}.json"))
    }

    /// Takes the lock `name` if nobody has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<FileLock>> {
        let (file, path) = self.open_lock(name)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::io("lock", &path)(errno.into())),
        }
    }

    /// Waits for the lock `name`. Blocks.
    pub(crate) fn lock(&self, name: &str) -> Result<FileLock> {
        let (file, path) = self.open_lock(name)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::io("lock", &path)(errno.into()))
    }

    fn open_lock(&self, name: &str) -> Result<(File, PathBuf)> {
        let path = self.0.join("locks").join(name);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        Ok((file.map_err(Error::io("open", &path))?, path))
    }

    /// Removes a lock's file; the holder does it last, while it holds the lock.
    pub(crate) fn forget_lock(&self, name: &str) {
        // A file that stays is an empty file, and the next holder's.
        let _ = fs::remove_file(self.0.join("locks").join(name));
    }
}

/// `WRENN_DATA_DIR`; else `/var/lib/wrenn` for root and `$XDG_DATA_HOME/wrenn` for others.
#[must_use]
pub fn default_path() -> PathBuf {
    if let Some(path) = std::env::var_os("WRENN_DATA_DIR").filter(|path| !path.is_empty()) {
        return path.into();
    }
    if nix::unistd::Uid::effective().is_root() {
        return "/var/lib/wrenn".into();
    }
    let home =
        || std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), |home| Path::new(&home).join(".local/share"));
    std::env::var_os("XDG_DATA_HOME").map_or_else(home, PathBuf::from).join("wrenn")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_is_free_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::create(dir.path()).unwrap();
        let held = data.try_lock("x").unwrap().unwrap();
        assert!(data.try_lock("x").unwrap().is_none());
        drop(held);
        assert!(data.try_lock("x").unwrap().is_some());
    }

    #[test]
    fn a_file_in_the_way_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::create(file.path()).unwrap_err();
        assert!(error.to_string().contains(file.path().to_str().unwrap()), "{error}");
    }
}
