//! A data file: the packed pages of one generation, and their checksums.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

pub(crate) use self::{decoder::Decoder, writer::DataWriter};
use crate::{
    chunks::ChunkTable,
    error::{Error, Result},
    files::Root,
    format::{Damage, FixedPart, Header, Space},
    id::GenerationId,
    page::{PAGE_BYTES, PAGE_BYTES_U64, PageIndex},
};

mod decoder;
mod writer;

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
    chunks: Option<ChunkTable>,
}

impl DataFile {
    fn open(root: &Root, generation: GenerationId, space: Space) -> Result<Self> {
        let (page_crcs, chunks) = read_data_tables(root, generation, space)?;
        if let Some(chunks) = &chunks {
            chunks.codec().check().map_err(|damage| Error::corrupt(space.header_file(), generation, damage))?;
        }
        let name = space.data_file();
        let path = root.dir(generation).join(&name);
        let file = root.disk.open(&path).map_err(|source| absent_or_io(&path, &name, generation, source))?;
        let actual = file.metadata().map_err(|source| Error::io("inspect", &path, source))?.len();
        let this = Self { generation, space, path, file, page_crcs, chunks };
        let expected = this.len();
        if actual != expected { Err(this.corrupt(Damage::Length { expected, actual })) } else { Ok(this) }
    }

    /// The length of the file in bytes.
    fn len(&self) -> u64 {
        let plain = self.page_crcs.len() as u64 * PAGE_BYTES_U64;
        self.chunks.as_ref().map_or(plain, ChunkTable::data_len)
    }

    pub(crate) fn page_count(&self) -> usize {
        self.page_crcs.len()
    }

    /// Fills `pages`, whole pages, with those from `offset` on, and checks each against its checksum.
    pub(crate) fn read(&self, offset: u32, pages: &mut [u8], decoder: &mut Decoder) -> Result<()> {
        let start = offset as usize;
        let crcs = self.page_crcs.get(start..start + pages.len() / PAGE_BYTES);
        let crcs = crcs.ok_or_else(|| self.corrupt(Damage::Contents("a page lies outside of the file")))?;
        match &self.chunks {
            Some(chunks) => decoder.read(self, chunks, offset, pages)?,
            None => self.read_bytes(PageIndex(offset).byte_offset(), pages)?,
        }
        for (page, (bytes, crc)) in (offset..).zip(pages.chunks_exact(PAGE_BYTES).zip(crcs)) {
            if crc32c::crc32c(bytes) != *crc {
                return Err(self.corrupt(Damage::PageChecksum(page)));
            }
        }
        Ok(())
    }

    /// The file, if its pages are in it as they are.
    pub(crate) fn plain(&self) -> Option<&File> {
        self.chunks.is_none().then_some(&self.file)
    }

    fn read_bytes(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(bytes, offset).map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: io::Error) -> Error {
        if source.kind() != io::ErrorKind::UnexpectedEof {
            return Error::io("read", &self.path, source);
        }
        let actual = self.file.metadata().map_or(0, |metadata| metadata.len());
        self.corrupt(Damage::Length { expected: self.len(), actual })
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
        if files.len() == files.capacity() {
            files.retain(|_, file| file.strong_count() > 0);
        }
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

/// Reads and checks the header file that a manifest names.
pub(crate) fn read_header(root: &Root, generation: GenerationId, space: Space, seal: HeaderSeal) -> Result<Header> {
    let name = space.header_file();
    let path = root.dir(generation).join(&name);
    let bytes = root.read_capped(&path, seal.len).map_err(|source| absent_or_io(&path, &name, generation, source))?;
    let corrupt = |damage| Error::corrupt(name.clone(), generation, damage);
    let actual = bytes.len() as u64;
    if actual != seal.len {
        return Err(corrupt(Damage::Length { expected: seal.len, actual }));
    }
    if crc32c::crc32c(&bytes) != seal.crc {
        return Err(corrupt(Damage::Checksum("file")));
    }
    let header = Header::decode(&bytes).map_err(corrupt)?;
    if header.generation != generation || header.space != space {
        return Err(corrupt(WRONG_OWNER));
    }
    Ok(header)
}

/// Reads and checks what tells of a generation's data file, and no other table of its header: its own index is of no use
/// to a descendant, which has a flat one, and opening a hundred ancestors has to be cheap.
fn read_data_tables(root: &Root, generation: GenerationId, space: Space) -> Result<(Vec<u32>, Option<ChunkTable>)> {
    let (file, fixed) = read_fixed_part(root, generation, space)?;
    let range = fixed.data_tables_range();
    let mut tables = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let (name, path) = header_of(root, generation, space);
    file.read_exact_at(&mut tables, range.start).map_err(|source| absent_or_io(&path, &name, generation, source))?;
    fixed.decode_data_tables(&tables).map_err(|damage| Error::corrupt(name, generation, damage))
}

/// Reads and checks the start of a generation's header.
pub(crate) fn read_fixed_part(root: &Root, generation: GenerationId, space: Space) -> Result<(File, FixedPart)> {
    let (name, path) = header_of(root, generation, space);
    let io = |source| absent_or_io(&path, &name, generation, source);
    let corrupt = |damage| Error::corrupt(name.clone(), generation, damage);
    let file = root.disk.open(&path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    let mut fixed = [0; FixedPart::LEN_MAX];
    let present = usize::try_from(file_len).unwrap_or(usize::MAX).min(fixed.len());
    file.read_exact_at(&mut fixed[..present], 0).map_err(io)?;
    let fixed = FixedPart::decode(&fixed[..present], file_len).map_err(corrupt)?;
    if fixed.generation != generation || fixed.space != space {
        return Err(corrupt(WRONG_OWNER));
    }
    Ok((file, fixed))
}

fn header_of(root: &Root, generation: GenerationId, space: Space) -> (String, PathBuf) {
    let name = space.header_file();
    let path = root.dir(generation).join(&name);
    (name, path)
}

const WRONG_OWNER: Damage = Damage::Contents("it belongs to another generation or space");

/// A file that a manifest or header names and that is not there is damage; anything else may pass.
pub(crate) fn absent_or_io(path: &Path, name: &str, generation: GenerationId, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::corrupt(name, generation, Damage::Absent),
        _ => Error::io("read", path, source),
    }
}
