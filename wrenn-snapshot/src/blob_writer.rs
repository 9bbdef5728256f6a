//! A blob that is being written.

use std::io::{self, Write};

use crate::{
    error::{Error, Result},
    format::manifest::BlobRecord,
    new_file::NewFile,
};

/// Takes a blob's bytes as they come. Dropped before [`finish`](Self::finish), it leaves no blob.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    blobs: &'a mut Vec<BlobRecord>,
    file: NewFile,
    record: BlobRecord,
    finished: bool,
}

impl<'a> BlobWriter<'a> {
    /// Writes to `file` what is going to be one of `blobs`.
    pub(crate) fn new(blobs: &'a mut Vec<BlobRecord>, file: NewFile, name: &str) -> Self {
        Self { blobs, file, record: BlobRecord { name: name.to_owned(), len: 0, crc: 0 }, finished: false }
    }

    /// Writes all of some bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|source| Error::io("write", &self.file.path, source))
    }

    /// Makes the blob durable and part of the generation.
    ///
    /// # Errors
    /// The file cannot be synced.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync()?;
        self.blobs.push(self.record.clone());
        self.finished = true;
        Ok(())
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.record.crc = crc32c::crc32c_append(self.record.crc, &bytes[..written]);
        self.record.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.file.discard();
        }
    }
}
