//! Where the chunks of a compressed data file are.

use std::ops::Range;

use crate::{
    compression::Codec,
    damage::Damage,
    page::{PAGE_BYTES, bytes_of},
};

/// The chunks of a compressed data file: each is [`pages`](Self::chunk_pages) of the pages that it stores, the last one
/// what is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkTable {
    codec: Codec,
    chunk_pages: u32,
    data_pages: u32,
    /// Where each begins in the file, and where the last one ends.
    bounds: Vec<u64>,
    /// CRC32C of what is stored of each.
    crcs: Vec<u32>,
}

impl ChunkTable {
    /// A table of chunks, each by its stored length in bytes and its checksum.
    pub(crate) fn new(
        codec: Codec,
        chunk_pages: u32,
        data_pages: u32,
        chunks: impl Iterator<Item = (u32, u32)>,
    ) -> Result<Self, Damage> {
        if !chunk_pages.is_power_of_two() || chunk_pages > CHUNK_PAGES_MAX {
            return Err(Damage::Contents("the pages of a chunk are no power of two, or too many"));
        }
        let mut table = Self { codec, chunk_pages, data_pages, bounds: vec![0], crcs: Vec::new() };
        let mut end = 0;
        for (chunk, (len, crc)) in (0..).zip(chunks) {
            let whole = bytes_of(table.pages_of(chunk).len().try_into().unwrap_or(u32::MAX)) as u64;
            if len == 0 || u64::from(len) > whole {
                return Err(Damage::Contents("a chunk's length is impossible"));
            }
            end += u64::from(len);
            table.bounds.push(end);
            table.crcs.push(crc);
        }
        if table.crcs.len() != count(data_pages, chunk_pages) as usize {
            return Err(Damage::Contents("there are more or fewer chunks than pages for them"));
        }
        Ok(table)
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    pub(crate) fn chunk_pages(&self) -> u32 {
        self.chunk_pages
    }

    /// The stored length and the checksum of each.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (u32, u32)> {
        let lens = self.bounds.windows(2).map(|pair| u32::try_from(pair[1] - pair[0]).unwrap_or(u32::MAX));
        lens.zip(self.crcs.iter().copied())
    }

    /// The length of the data file in bytes.
    pub(crate) fn data_len(&self) -> u64 {
        self.bounds.last().copied().unwrap_or(0)
    }

    /// The chunk that holds a stored page.
    pub(crate) fn chunk_of(&self, page: u32) -> u32 {
        page / self.chunk_pages
    }

    /// The stored pages of a chunk.
    pub(crate) fn pages_of(&self, chunk: u32) -> Range<u32> {
        let start = chunk.saturating_mul(self.chunk_pages).min(self.data_pages);
        start..start.saturating_add(self.chunk_pages).min(self.data_pages)
    }

    /// Where a chunk is in the data file, in bytes.
    pub(crate) fn bytes_of(&self, chunk: u32) -> Range<u64> {
        self.bounds[chunk as usize]..self.bounds[chunk as usize + 1]
    }

    pub(crate) fn crc_of(&self, chunk: u32) -> u32 {
        self.crcs[chunk as usize]
    }
}

/// How many chunks so many pages make.
pub(crate) fn count(data_pages: u32, chunk_pages: u32) -> u32 {
    data_pages.div_ceil(chunk_pages.max(1))
}

/// 16 KiB. On a guest's memory the ratio is within 2 % of that of 256 KiB, and a page that is wanted alone takes a
/// fourth of the time that it takes with 64 KiB. `docs/snapshot-format.md` has the figures.
pub(crate) const CHUNK_PAGES: u32 = 4;

/// 1 MiB.
const CHUNK_PAGES_MAX: u32 = 256;

const _: () = assert!(PAGE_BYTES == 4096, "the sizes above are in such pages");
