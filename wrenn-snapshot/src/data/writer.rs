//! Writing a data file.

use std::io::IoSlice;

use crate::{
    chunks::{CHUNK_PAGES, ChunkTable},
    compression::{Compression, Compressor},
    error::{Error, Result},
    new_file::NewFile,
    page::{PAGE_BYTES, bytes_of, whole_pages},
};

/// A data file that is being written, page after page.
#[derive(Debug)]
pub(crate) struct DataWriter {
    file: NewFile,
    packing: Option<Packing>,
}

/// Pages on their way into chunks, and chunks on their way into the file.
#[derive(Debug)]
struct Packing {
    compressor: Compressor,
    /// The beginning of a chunk.
    begun: Vec<u8>,
    packed: Vec<u8>,
    /// The stored length and the checksum of each chunk so far.
    chunks: Vec<(u32, u32)>,
    pages: u64,
}

impl DataWriter {
    pub(crate) fn new(file: NewFile, compression: Compression) -> Result<Self> {
        let compressor = compression.codec().map(Compressor::new).transpose();
        let compressor = compressor.map_err(|source| Error::io("compress", &file.path, source))?;
        let packing = compressor.map(|compressor| {
            let (begun, packed) = (Vec::with_capacity(CHUNK_BYTES), Vec::new());
            Packing { compressor, begun, packed, chunks: Vec::new(), pages: 0 }
        });
        Ok(Self { file, packing })
    }

    /// Appends pieces of whole pages, none of them empty, one after another.
    pub(crate) fn append_all(&mut self, pieces: &mut [IoSlice<'_>]) -> Result<()> {
        let Self { file, packing: Some(packing) } = self else { return self.file.append_all(pieces) };
        for piece in pieces {
            packing.take(piece, file)?;
        }
        Ok(())
    }

    /// Makes what was appended durable, and says where its chunks are. Nothing is appended afterwards.
    pub(crate) fn finish(&mut self) -> Result<Option<ChunkTable>> {
        let table = match &mut self.packing {
            Some(packing) => Some(packing.finish(&mut self.file)?),
            None => None,
        };
        self.file.sync()?;
        Ok(table)
    }

    /// Removes it again.
    pub(crate) fn discard(&self) {
        self.file.discard();
    }
}

impl Packing {
    fn take(&mut self, mut bytes: &[u8], file: &mut NewFile) -> Result<()> {
        self.pages += (bytes.len() / PAGE_BYTES) as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.begun.len()));
            bytes = later;
            if now.len() == CHUNK_BYTES {
                self.pack(now, file)?;
                continue;
            }
            self.begun.extend_from_slice(now);
            if self.begun.len() == CHUNK_BYTES {
                self.pack_begun(file)?;
            }
        }
        Ok(())
    }

    fn pack_begun(&mut self, file: &mut NewFile) -> Result<()> {
        let mut begun = std::mem::take(&mut self.begun);
        self.pack(&begun, file)?;
        begun.clear();
        self.begun = begun;
        Ok(())
    }

    fn pack(&mut self, chunk: &[u8], file: &mut NewFile) -> Result<()> {
        let start = self.packed.len();
        let len = self.compressor.append(chunk, &mut self.packed);
        let len = u32::try_from(len).map_err(|_| Error::invalid("a chunk is too long"))?;
        self.chunks.push((len, crc32c::crc32c(&self.packed[start..])));
        if self.packed.len() >= WRITE_BYTES { self.write(file) } else { Ok(()) }
    }

    fn write(&mut self, file: &mut NewFile) -> Result<()> {
        file.append(&self.packed)?;
        self.packed.clear();
        Ok(())
    }

    fn finish(&mut self, file: &mut NewFile) -> Result<ChunkTable> {
        if !self.begun.is_empty() {
            self.pack_begun(file)?;
        }
        if !self.packed.is_empty() {
            self.write(file)?;
        }
        let pages = whole_pages(self.pages * PAGE_BYTES as u64).ok_or_else(|| Error::invalid("too many pages"))?;
        let table = ChunkTable::new(self.compressor.codec(), CHUNK_PAGES, pages, self.chunks.iter().copied());
        table.map_err(|damage| Error::invalid(format!("cannot store the pages: {damage}")))
    }
}

const CHUNK_BYTES: usize = bytes_of(CHUNK_PAGES);

/// 256 KiB: a system call costs nothing beside it.
const WRITE_BYTES: usize = 256 << 10;
