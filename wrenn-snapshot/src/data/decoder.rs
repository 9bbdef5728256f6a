//! Reading pages out of the chunks of compressed data files.

use std::ops::Range;

use crate::{
    chunks::ChunkTable, compression::Decompressor, damage::Damage, data::stored::StoredBytes, error::Result,
    id::GenerationId, page::bytes_of, space::Space,
};

/// Room for chunks, kept from one read to the next, and the last chunk of which only a part was wanted: the rest of it
/// is often wanted next.
#[derive(Default)]
pub(crate) struct Decoder {
    stored: Vec<u8>,
    chunk: Vec<u8>,
    /// What `chunk` is. The bytes of a published data file never change.
    held: Option<(GenerationId, Space, u32)>,
    decompressor: Decompressor,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("held", &self.held).finish_non_exhaustive()
    }
}

impl Decoder {
    /// Fills `into`, whole pages, with the stored pages from `first` on, which are in the file.
    pub(crate) fn read(
        &mut self,
        file: &StoredBytes,
        chunks: &ChunkTable,
        first: u32,
        mut into: &mut [u8],
    ) -> Result<()> {
        let mut page = first;
        while !into.is_empty() {
            let wanted = page..page + u32::try_from(into.len() / bytes_of(1)).unwrap_or(u32::MAX).min(PAGES_AT_ONCE);
            let (now, later) = into.split_at_mut(bytes_of(wanted.end - wanted.start));
            self.read_some(file, chunks, wanted.clone(), now)?;
            (page, into) = (wanted.end, later);
        }
        Ok(())
    }

    fn read_some(
        &mut self,
        file: &StoredBytes,
        chunks: &ChunkTable,
        wanted: Range<u32>,
        into: &mut [u8],
    ) -> Result<()> {
        let (mut first, last) = (chunks.chunk_of(wanted.start), chunks.chunk_of(wanted.end - 1));
        if self.held == Some((file.generation, file.space, first)) {
            copy_part(&self.chunk, &chunks.pages_of(first), &wanted, into);
            first += 1;
        }
        if first > last {
            return Ok(());
        }
        let stored = chunks.bytes_of(first).start..chunks.bytes_of(last).end;
        // One read for all of them.
        self.stored.resize(usize::try_from(stored.end - stored.start).unwrap_or(usize::MAX), 0);
        file.read(stored.start, &mut self.stored)?;
        for chunk in first..=last {
            self.decode(file, chunks, chunk, stored.start, &wanted, into)?;
        }
        Ok(())
    }

    /// Decompresses one of the chunks that were read from `base` on, and copies what is wanted of it.
    fn decode(
        &mut self,
        file: &StoredBytes,
        chunks: &ChunkTable,
        chunk: u32,
        base: u64,
        wanted: &Range<u32>,
        into: &mut [u8],
    ) -> Result<()> {
        let bytes = chunks.bytes_of(chunk);
        let at = |offset: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
        let stored = &self.stored[at(bytes.start)..at(bytes.end)];
        let damaged = || file.corrupt(Damage::Chunk(chunk));
        if crc32c::crc32c(stored) != chunks.crc_of(chunk) {
            return Err(damaged());
        }
        let pages = chunks.pages_of(chunk);
        if wanted.start <= pages.start && pages.end <= wanted.end {
            let whole = &mut into[bytes_of(pages.start - wanted.start)..bytes_of(pages.end - wanted.start)];
            return self.decompressor.decompress(chunks.codec(), stored, whole).ok_or_else(damaged);
        }
        self.held = None;
        self.chunk.resize(bytes_of(pages.end - pages.start), 0);
        self.decompressor.decompress(chunks.codec(), stored, &mut self.chunk).ok_or_else(damaged)?;
        self.held = Some((file.generation, file.space, chunk));
        copy_part(&self.chunk, &pages, wanted, into);
        Ok(())
    }
}

/// Copies those of a chunk's pages that are wanted to their place among these.
fn copy_part(chunk: &[u8], pages: &Range<u32>, wanted: &Range<u32>, into: &mut [u8]) {
    let (from, to) = (pages.start.max(wanted.start), pages.end.min(wanted.end));
    let source = &chunk[bytes_of(from - pages.start)..bytes_of(to - pages.start)];
    into[bytes_of(from - wanted.start)..bytes_of(to - wanted.start)].copy_from_slice(source);
}

/// 1 MiB: it bounds what is held of the stored bytes.
const PAGES_AT_ONCE: u32 = 256;
