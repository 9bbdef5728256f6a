//! A published data file.

use std::fs::File;

use crate::{
    chunks::ChunkTable,
    damage::Damage,
    data::{
        decoder::Decoder,
        headers::{absent_or_io, read_data_tables},
        stored::StoredBytes,
    },
    error::{Error, Result},
    id::GenerationId,
    page::{PAGE_BYTES, PAGE_BYTES_U64, PageIndex},
    root::Root,
    space::Space,
};

/// A published data file, open for reading.
#[derive(Debug)]
pub(crate) struct DataFile {
    stored: StoredBytes,
    page_crcs: Vec<u32>,
    chunks: Option<ChunkTable>,
}

impl DataFile {
    pub(crate) fn open(root: &Root, generation: GenerationId, space: Space) -> Result<Self> {
        let (page_crcs, chunks) = read_data_tables(root, generation, space)?;
        if let Some(chunks) = &chunks {
            chunks.codec().check().map_err(|damage| Error::corrupt(space.header_file(), generation, damage))?;
        }
        let name = space.data_file();
        let path = root.dir(generation).join(&name);
        let file = root.disk.open(&path).map_err(|source| absent_or_io(&path, &name, generation, source))?;
        let actual = file.metadata().map_err(|source| Error::io("inspect", &path, source))?.len();
        let plain = page_crcs.len() as u64 * PAGE_BYTES_U64;
        let len = chunks.as_ref().map_or(plain, ChunkTable::data_len);
        let stored = StoredBytes { generation, space, path, file, len };
        if actual != len {
            return Err(stored.corrupt(Damage::Length { expected: len, actual }));
        }
        Ok(Self { stored, page_crcs, chunks })
    }

    pub(crate) fn page_count(&self) -> usize {
        self.page_crcs.len()
    }

    /// Fills `pages`, whole pages, with those from `offset` on, and checks each against its checksum.
    pub(crate) fn read(&self, offset: u32, pages: &mut [u8], decoder: &mut Decoder) -> Result<()> {
        let start = offset as usize;
        let crcs = self.page_crcs.get(start..start + pages.len() / PAGE_BYTES);
        let crcs = crcs.ok_or_else(|| self.stored.corrupt(Damage::Contents("a page lies outside of the file")))?;
        match &self.chunks {
            Some(chunks) => decoder.read(&self.stored, chunks, offset, pages)?,
            None => self.stored.read(PageIndex(offset).byte_offset(), pages)?,
        }
        for (page, (bytes, crc)) in (offset..).zip(pages.chunks_exact(PAGE_BYTES).zip(crcs)) {
            if crc32c::crc32c(bytes) != *crc {
                return Err(self.stored.corrupt(Damage::PageChecksum(page)));
            }
        }
        Ok(())
    }

    /// The file, if its pages are in it as they are.
    pub(crate) fn plain(&self) -> Option<&File> {
        self.chunks.is_none().then_some(&self.stored.file)
    }
}
