//! File operations that survive a crash, and whose errors name the file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::error::{Error, Result};

/// A new file, readable by its owner alone.
pub(crate) fn create_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| Error::io("create", path, source))
}

/// A new directory, readable by its owner alone.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|source| Error::io("create", path, source))
}

/// Makes the file's bytes durable. Its name is durable once its directory is.
pub(crate) fn sync_file(file: &File, path: &Path) -> Result<()> {
    file.sync_all().map_err(|source| Error::io("sync", path, source))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(|source| Error::io("open", path, source))?;
    sync_file(&dir, path)
}

/// Writes a whole new file and makes its bytes durable.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = create_file(path)?;
    io::Write::write_all(&mut &file, bytes).map_err(|source| Error::io("write", path, source))?;
    sync_file(&file, path)
}

/// The whole file, or at most one byte more than `bytes_max` of it: enough to see that it is too long.
pub(crate) fn read_capped(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}
