//! A file that is being written.

use std::{
    fs::File,
    io::{self, IoSlice},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    disk::Disk,
    error::{Error, Result},
};

/// A file that is being written: its bytes are durable once it was synced, and its name once its directory
/// was.
#[derive(Debug)]
pub(crate) struct NewFile {
    disk: Arc<dyn Disk>,
    file: File,
    pub(crate) path: PathBuf,
}

impl NewFile {
    /// A file that `disk` has just made at `path`.
    pub(crate) fn new(disk: Arc<dyn Disk>, file: File, path: PathBuf) -> Self {
        Self { disk, file, path }
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.append_all(&mut [IoSlice::new(bytes)])
    }

    /// Appends pieces, none of them empty, one after another.
    pub(crate) fn append_all(&mut self, mut pieces: &mut [IoSlice<'_>]) -> Result<()> {
        let error = |source| Error::io("write", &self.path, source);
        while !pieces.is_empty() {
            match self.disk.write(&self.file, pieces) {
                Ok(0) => return Err(error(io::ErrorKind::WriteZero.into())),
                Ok(written) => IoSlice::advance_slices(&mut pieces, written),
                Err(failed) if failed.kind() == io::ErrorKind::Interrupted => {}
                Err(failed) => return Err(error(failed)),
            }
        }
        Ok(())
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.disk.sync(&self.file).map_err(|source| Error::io("sync", &self.path, source))
    }

    /// Removes it again. What stays behind is swept with its directory, or is a file that no manifest names.
    pub(crate) fn discard(&self) {
        let _ = self.disk.remove_file(&self.path);
    }
}

impl io::Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.write(&self.file, &[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
