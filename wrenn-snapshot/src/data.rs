//! A data file: the packed pages of one generation, and their checksums.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use crate::{
    error::{Error, Result},
    files::Root,
    format::{Damage, Header, Space},
    id::GenerationId,
    page::{PAGE_BYTES, PAGE_BYTES_U64, PageIndex},
};

/// A published data file, open for reading.
///
/// It is read with `pread`, not mapped: a file that was cut off gives an error instead of a signal.
#[derive(Debug)]
pub(crate) struct DataFile {
    generation: GenerationId,
    space: Space,
    path: PathBuf,
    file: File,
    page_crcs: Vec<u32>,
}

impl DataFile {
    fn open(root: &Root, generation: GenerationId, space: Space) -> Result<Self> {
        let header = read_header(root, generation, space, None)?;
        let name = space.data_file();
        let path = root.dir(generation).join(&name);
        let file = root.disk.open(&path).map_err(|source| absent_or_io(&path, &name, generation, source))?;
        let actual = file.metadata().map_err(|source| Error::io("inspect", &path, source))?.len();
        let expected = header.page_crcs.len() as u64 * PAGE_BYTES_U64;
        if actual != expected {
            return Err(Error::corrupt(name, generation, Damage::Length { expected, actual }));
        }
        Ok(Self { generation, space, path, file, page_crcs: header.page_crcs })
    }

    pub(crate) fn page_count(&self) -> usize {
        self.page_crcs.len()
    }

    /// Fills `pages`, whole pages, with those from `offset` on, and checks each against its checksum.
    pub(crate) fn read(&self, offset: u32, pages: &mut [u8]) -> Result<()> {
        let start = offset as usize;
        let crcs = self.page_crcs.get(start..start + pages.len() / PAGE_BYTES);
        let crcs = crcs.ok_or_else(|| self.corrupt(Damage::Contents("a page lies outside of the file")))?;
        self.file.read_exact_at(pages, PageIndex(offset).byte_offset()).map_err(|source| self.read_error(source))?;
        for (page, (bytes, crc)) in (offset..).zip(pages.chunks_exact(PAGE_BYTES).zip(crcs)) {
            if crc32c::crc32c(bytes) != *crc {
                return Err(self.corrupt(Damage::PageChecksum(page)));
            }
        }
        Ok(())
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn read_error(&self, source: io::Error) -> Error {
        if source.kind() != io::ErrorKind::UnexpectedEof {
            return Error::io("read", &self.path, source);
        }
        let actual = self.file.metadata().map_or(0, |metadata| metadata.len());
        self.corrupt(Damage::Length { expected: self.page_crcs.len() as u64 * PAGE_BYTES_U64, actual })
    }

    fn corrupt(&self, damage: Damage) -> Error {
        Error::corrupt(self.space.data_file(), self.generation, damage)
    }
}

/// The data files that are open now. They never change, so every reader of a generation shares one.
#[derive(Debug, Default)]
pub(crate) struct DataFiles(Mutex<HashMap<(GenerationId, Space), Weak<DataFile>>>);

impl DataFiles {
    pub(crate) fn open(&self, root: &Root, generation: GenerationId, space: Space) -> Result<Arc<DataFile>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(&(generation, space)).and_then(Weak::upgrade) {
            return Ok(file);
        }
        let file = Arc::new(DataFile::open(root, generation, space)?);
        files.retain(|_, file| file.strong_count() > 0);
        files.insert((generation, space), Arc::downgrade(&file));
        Ok(file)
    }
}

/// What a manifest knows of a header file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderSeal {
    pub(crate) len: u64,
    pub(crate) crc: u32,
}

/// Reads and checks a header file, against its manifest too if that is at hand.
pub(crate) fn read_header(
    root: &Root,
    generation: GenerationId,
    space: Space,
    seal: Option<HeaderSeal>,
) -> Result<Header> {
    let name = space.header_file();
    let path = root.dir(generation).join(&name);
    let bytes_max = seal.map_or(u64::MAX, |seal| seal.len);
    let bytes = root.read_capped(&path, bytes_max).map_err(|source| absent_or_io(&path, &name, generation, source))?;
    let corrupt = |damage| Error::corrupt(name.clone(), generation, damage);
    if let Some(seal) = seal {
        let actual = bytes.len() as u64;
        if actual != seal.len {
            return Err(corrupt(Damage::Length { expected: seal.len, actual }));
        }
        if crc32c::crc32c(&bytes) != seal.crc {
            return Err(corrupt(Damage::Checksum("file")));
        }
    }
    let header = Header::decode(&bytes).map_err(corrupt)?;
    if header.generation != generation || header.space != space {
        return Err(corrupt(Damage::Contents("it belongs to another generation or space")));
    }
    Ok(header)
}

/// A file that a manifest or header names and that is not there is damage; anything else may pass.
pub(crate) fn absent_or_io(path: &Path, name: &str, generation: GenerationId, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::corrupt(name, generation, Damage::Absent),
        _ => Error::io("read", path, source),
    }
}
