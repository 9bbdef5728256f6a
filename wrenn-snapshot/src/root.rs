//! The directory of a store, and the operations on it that survive a crash and whose errors name the file.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    disk::Disk,
    error::{Error, Result},
    id::GenerationId,
    new_file::NewFile,
};

/// Where a store is: a directory on a disk.
///
/// Locks are `flock`s of directories, and die with the process that holds them. That of the store's own directory is
/// the *gate*: shared while a generation comes into hand, exclusive while it is decided what goes.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
}

/// A lock of a directory; dropping it unlocks.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held, not read")] File);

impl Root {
    /// The directory of a published generation.
    pub(crate) fn dir(&self, id: GenerationId) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// Waits for a collection that is deciding, and keeps the next one from it.
    pub(crate) fn share_gate(&self) -> Result<DirLock> {
        self.lock(File::lock_shared)
    }

    /// Waits until nothing comes into hand, and keeps it so.
    pub(crate) fn close_gate(&self) -> Result<DirLock> {
        self.lock(File::lock)
    }

    fn lock(&self, lock: impl Fn(&File) -> io::Result<()>) -> Result<DirLock> {
        let dir = self.disk.open(&self.path).map_err(|source| Error::io("open", &self.path, source))?;
        loop {
            match lock(&dir) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                locked => return locked.map(|()| DirLock(dir)).map_err(|source| Error::io("lock", &self.path, source)),
            }
        }
    }

    /// Says that a directory is in use, for as long as the lock lives. `None` if it is not there. The caller shares
    /// the gate, so that nobody decides about the directory meanwhile.
    pub(crate) fn use_dir(&self, path: &Path) -> Result<Option<DirLock>> {
        let dir = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir.map_err(|source| Error::io("open", path, source))?,
        };
        dir.try_lock_shared().map_err(|error| Error::io("lock", path, error.into()))?;
        Ok(Some(DirLock(dir)))
    }

    /// The lock of a directory that nobody uses. `None` if somebody does, or it is not there.
    pub(crate) fn lock_unused(&self, path: &Path) -> Result<Option<DirLock>> {
        let dir = match self.disk.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir.map_err(|source| Error::io("open", path, source))?,
        };
        match dir.try_lock() {
            Ok(()) => Ok(Some(DirLock(dir))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => Err(Error::io("lock", path, source)),
        }
    }

    pub(crate) fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.disk.list(dir).map_err(|source| Error::io("list", dir, source))
    }

    pub(crate) fn create_dir(&self, path: &Path) -> Result<()> {
        self.disk.create_dir(path).map_err(|source| Error::io("create", path, source))
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(from, to).map_err(|source| Error::io("rename", from, source))
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<()> {
        let dir = self.disk.open(path).map_err(|source| Error::io("open", path, source))?;
        self.disk.sync(&dir).map_err(|source| Error::io("sync", path, source))
    }

    /// Removes a directory of files. One that somebody else removes is as good.
    pub(crate) fn remove_dir(&self, path: &Path) -> Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
            _ => Ok(()),
        };
        let names = match self.disk.list(path) {
            Ok(names) => names,
            Err(error) => return gone(Err(error)),
        };
        for name in names {
            gone(self.disk.remove_file(&path.join(name)))?;
        }
        gone(self.disk.remove_dir(path))
    }

    /// A new file to write.
    pub(crate) fn create_file(&self, path: PathBuf) -> Result<NewFile> {
        let file = self.disk.create_file(&path).map_err(|source| Error::io("create", &path, source))?;
        Ok(NewFile::new(Arc::clone(&self.disk), file, path))
    }

    /// Writes a whole new file and makes its bytes durable.
    pub(crate) fn write_synced(&self, path: PathBuf, bytes: &[u8]) -> Result<()> {
        let mut file = self.create_file(path)?;
        file.append(bytes)?;
        file.sync()
    }

    /// The whole file, or at most one byte more than `bytes_max` of it: enough to see that it is too long.
    pub(crate) fn read_capped(&self, path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
        let file = self.disk.open(path)?;
        let len = file.metadata()?.len().min(bytes_max.saturating_add(1));
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The length of a file in bytes.
    pub(crate) fn len(&self, path: &Path) -> io::Result<u64> {
        self.disk.len(path)
    }
}
