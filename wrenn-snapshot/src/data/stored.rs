//! The bytes of a data file as they are stored.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

use crate::{
    damage::Damage,
    error::{Error, Result},
    id::GenerationId,
    space::Space,
};

/// The stored bytes of a published data file.
///
/// They are read with `pread`, not mapped: a file that was cut off gives an error instead of a signal.
#[derive(Debug)]
pub(crate) struct StoredBytes {
    pub(crate) generation: GenerationId,
    pub(crate) space: Space,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// The length that the file has to have, in bytes.
    pub(crate) len: u64,
}

impl StoredBytes {
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: io::Error) -> Error {
        if source.kind() != io::ErrorKind::UnexpectedEof {
            return Error::io("read", &self.path, source);
        }
        let actual = self.file.metadata().map_or(0, |metadata| metadata.len());
        self.corrupt(Damage::Length { expected: self.len, actual })
    }

    pub(crate) fn corrupt(&self, damage: Damage) -> Error {
        Error::corrupt(self.space.data_file(), self.generation, damage)
    }
}
