//! The header of a space: a flat index, and a checksum for each page that the generation itself holds.

use std::ops::Range;

use crate::{
    chunks::{self, ChunkTable},
    compression::Codec,
    damage::Damage,
    extents::{Extent, ExtentIndex, Storage},
    format::fields::{COMPRESSED, CRC_LEN, Fields, ID_LEN, PLAIN, check_len},
    id::GenerationId,
    page::{PAGE_BYTES_U64, PageIndex, PageSize},
    space::Space,
};

/// The contents of a `<space>.header` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) generation: GenerationId,
    pub(crate) space: Space,
    /// Flat: it names the holder of every page, over all ancestors.
    pub(crate) index: ExtentIndex,
    /// CRC32C of each page of this generation's own data file.
    pub(crate) page_crcs: Vec<u32>,
    /// If that file is compressed.
    pub(crate) chunks: Option<ChunkTable>,
}

impl Header {
    /// The length of the generation's own data file in bytes.
    pub(crate) fn data_len(&self) -> u64 {
        let plain = self.page_crcs.len() as u64 * PAGE_BYTES_U64;
        self.chunks.as_ref().map_or(plain, ChunkTable::data_len)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, Damage> {
        let counts = Counts {
            pages: self.index.page_count(),
            generations: count(self.index.generations().len(), "generation count")?,
            extents: count(self.index.extents().len(), "extent count")?,
            data_pages: count(self.page_crcs.len(), "data page count")?,
            chunk_pages: self.chunks.as_ref().map(ChunkTable::chunk_pages),
        };
        counts.check_caps()?;
        let generations: Vec<u8> = self.index.generations().iter().flat_map(|id| *id.as_bytes()).collect();
        let extents: Vec<u8> = self.index.extents().flat_map(encode_extent).collect();
        let crcs: Vec<u8> = self.page_crcs.iter().flat_map(|crc| crc.to_le_bytes()).collect();

        let entries = self.chunks.iter().flat_map(ChunkTable::entries);
        let chunks: Vec<u8> = entries.flat_map(|(len, crc)| [len, crc]).flat_map(u32::to_le_bytes).collect();

        let mut bytes = Vec::with_capacity(usize::try_from(counts.file_len()).unwrap_or(0));
        bytes.extend_from_slice(HEADER_MAGIC);
        bytes.extend_from_slice(&if self.chunks.is_some() { COMPRESSED } else { PLAIN }.to_le_bytes());
        bytes.extend_from_slice(&self.space.code().to_le_bytes());
        bytes.extend_from_slice(self.generation.as_bytes());
        bytes.extend_from_slice(&counts.file_len().to_le_bytes());
        for field in [
            PageSize::KIB_4.bytes(),
            counts.pages,
            counts.generations,
            counts.extents,
            counts.data_pages,
            crc32c::crc32c(&generations),
            crc32c::crc32c(&extents),
            crc32c::crc32c(&crcs),
        ] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        let packing = match &self.chunks {
            None => vec![0],
            Some(table) => vec![table.codec().code(), table.chunk_pages(), crc32c::crc32c(&chunks)],
        };
        packing.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(&generations);
        bytes.extend_from_slice(&extents);
        bytes.extend_from_slice(&crcs);
        bytes.extend_from_slice(&chunks);
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let fixed = FixedPart::decode(bytes, bytes.len() as u64)?;
        let counts = fixed.counts;
        let mut rest = &bytes[counts.fixed_len()..];
        let generations = section(&mut rest, counts.generations, ID_LEN, fixed.crcs[0], "generation table")?;
        let extents = section(&mut rest, counts.extents, EXTENT_LEN, fixed.crcs[1], "extent table")?;
        let (page_crcs, chunks) = fixed.decode_data_tables(rest)?;
        let index = decode_index(counts.pages, generations, extents)?;
        check_own_offsets(&index, fixed.generation, counts.data_pages)?;
        Ok(Self { generation: fixed.generation, space: fixed.space, index, page_crcs, chunks })
    }
}

/// The start of a header: enough to read one table without the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FixedPart {
    pub(crate) generation: GenerationId,
    pub(crate) space: Space,
    counts: Counts,
    /// Of the first three tables.
    crcs: [u32; 3],
    packing: Option<Packing>,
}

/// How the data file is compressed.
#[derive(Clone, Copy, Debug)]
struct Packing {
    codec: Codec,
    chunk_pages: u32,
    /// Of the chunk table.
    crc: u32,
}

impl FixedPart {
    /// As many bytes as a fixed part has at most.
    pub(crate) const LEN_MAX: usize = HEADER_FIXED_COMPRESSED;

    /// Decodes the start of a file that is `file_len` bytes long.
    pub(crate) fn decode(bytes: &[u8], file_len: u64) -> Result<Self, Damage> {
        let lens = [(PLAIN, HEADER_FIXED), (COMPRESSED, HEADER_FIXED_COMPRESSED)];
        let (mut fixed, version) = Fields::checked(bytes, lens, HEADER_MAGIC, "fixed part")?;
        let space = Space::from_code(fixed.u32()).ok_or(Damage::Contents("unknown kind of space"))?;
        let generation = GenerationId::from_bytes(fixed.array());
        let recorded_len = fixed.u64();
        if PageSize::from_bytes(fixed.u32()).is_none() {
            return Err(Damage::Contents("unsupported page size"));
        }
        let [pages, generations, extents, data_pages] = [fixed.u32(), fixed.u32(), fixed.u32(), fixed.u32()];
        let crcs = [fixed.u32(), fixed.u32(), fixed.u32()];
        let packing = if version == COMPRESSED { Some(Packing::decode(&mut fixed)?) } else { None };
        if version == PLAIN && fixed.u32() != 0 {
            return Err(Damage::Contents("a reserved field is not 0"));
        }
        let chunk_pages = packing.map(|packing| packing.chunk_pages);
        let counts = Counts { pages, generations, extents, data_pages, chunk_pages };
        counts.check_caps()?;
        check_len(counts.file_len(), recorded_len)?;
        check_len(recorded_len, file_len)?;
        Ok(Self { generation, space, counts, crcs, packing })
    }

    /// How many pages are in the data file.
    pub(crate) fn data_pages(&self) -> u32 {
        self.counts.data_pages
    }

    /// Where the generation table is, in bytes. It has been checked that the file has it.
    pub(crate) fn generations_range(&self) -> Range<u64> {
        let start = self.counts.fixed_len() as u64;
        start..start + u64::from(self.counts.generations) * ID_LEN as u64
    }

    /// Decodes that.
    pub(crate) fn decode_generations(&self, mut table: &[u8]) -> Result<Vec<GenerationId>, Damage> {
        let table = section(&mut table, self.counts.generations, ID_LEN, self.crcs[0], "generation table")?;
        Ok(table.chunks_exact(ID_LEN).map(|id| GenerationId::from_bytes(Fields(id).array())).collect())
    }

    /// Where the tables are that tell of the data file, in bytes. It has been checked that the file has them.
    pub(crate) fn data_tables_range(&self) -> Range<u64> {
        let end = self.counts.file_len();
        end - u64::from(self.counts.data_pages) * CRC_LEN as u64 - self.counts.chunk_table_len()..end
    }

    /// Decodes those: the page checksums, and where the chunks are.
    pub(crate) fn decode_data_tables(&self, mut tables: &[u8]) -> Result<(Vec<u32>, Option<ChunkTable>), Damage> {
        let data_pages = self.counts.data_pages;
        let table = section(&mut tables, data_pages, CRC_LEN, self.crcs[2], "page checksum table")?;
        let page_crcs = table.chunks_exact(CRC_LEN).map(|crc| Fields(crc).u32()).collect();
        let Some(Packing { codec, chunk_pages, crc }) = self.packing else { return Ok((page_crcs, None)) };
        let chunks = section(&mut tables, chunks::count(data_pages, chunk_pages), CHUNK_LEN, crc, "chunk table")?;
        let entries = chunks.chunks_exact(CHUNK_LEN).map(Fields).map(|mut chunk| (chunk.u32(), chunk.u32()));
        Ok((page_crcs, Some(ChunkTable::new(codec, chunk_pages, data_pages, entries)?)))
    }
}

impl Packing {
    fn decode(fixed: &mut Fields<'_>) -> Result<Self, Damage> {
        let codec = Codec::from_code(fixed.u32()).ok_or(Damage::Contents("unknown kind of compression"))?;
        let (chunk_pages, crc) = (fixed.u32(), fixed.u32());
        if chunk_pages == 0 {
            return Err(Damage::Contents("the pages of a chunk are no power of two, or too many"));
        }
        Ok(Self { codec, chunk_pages, crc })
    }
}

/// The counts of a header's fixed part.
#[derive(Clone, Copy, Debug)]
struct Counts {
    pages: u32,
    generations: u32,
    extents: u32,
    data_pages: u32,
    /// If the data file is compressed.
    chunk_pages: Option<u32>,
}

impl Counts {
    fn check_caps(self) -> Result<(), Damage> {
        let capped = [
            (self.pages, PAGES_MAX, "page count"),
            (self.generations, GENERATIONS_MAX, "generation count"),
            (self.extents, EXTENTS_MAX, "extent count"),
            (self.data_pages, PAGES_MAX, "data page count"),
        ];
        match capped.into_iter().find(|(count, max, _)| count > max) {
            Some((_, _, what)) => Err(Damage::Cap(what)),
            None => Ok(()),
        }
    }

    fn fixed_len(self) -> usize {
        if self.chunk_pages.is_some() { HEADER_FIXED_COMPRESSED } else { HEADER_FIXED }
    }

    fn chunk_table_len(self) -> u64 {
        let chunks = self.chunk_pages.map_or(0, |chunk_pages| chunks::count(self.data_pages, chunk_pages));
        u64::from(chunks) * CHUNK_LEN as u64
    }

    fn file_len(self) -> u64 {
        self.fixed_len() as u64
            + self.chunk_table_len()
            + u64::from(self.generations) * ID_LEN as u64
            + u64::from(self.extents) * EXTENT_LEN as u64
            + u64::from(self.data_pages) * CRC_LEN as u64
    }
}

fn decode_index(page_count: u32, generations: &[u8], extents: &[u8]) -> Result<ExtentIndex, Damage> {
    let generations: Vec<_> =
        generations.chunks_exact(ID_LEN).map(|id| GenerationId::from_bytes(Fields(id).array())).collect();
    let mut sorted = generations.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Damage::Contents("a generation is in the table twice"));
    }
    let extents = extents.chunks_exact(EXTENT_LEN).map(decode_extent).collect::<Result<_, _>>()?;
    ExtentIndex::new(page_count, generations, extents).map_err(Damage::Extents)
}

/// Every page that the generation itself holds has to be in its own data file.
fn check_own_offsets(index: &ExtentIndex, own: GenerationId, data_pages: u32) -> Result<(), Damage> {
    let own = index.generations().iter().position(|id| *id == own);
    let outside = index.extents().any(|extent| match extent.storage {
        Storage::Data { generation, offset } => {
            Some(generation as usize) == own && u64::from(offset) + u64::from(extent.count) > u64::from(data_pages)
        }
        Storage::Zero => false,
    });
    if outside { Err(Damage::Contents("an extent lies outside of the data file")) } else { Ok(()) }
}

fn encode_extent(extent: Extent) -> [u8; EXTENT_LEN] {
    let (generation, offset) = match extent.storage {
        Storage::Zero => (ZERO, 0),
        Storage::Data { generation, offset } => (generation, offset),
    };
    let mut bytes = [0; EXTENT_LEN];
    for (field, value) in bytes.chunks_exact_mut(4).zip([extent.start.0, extent.count, generation, offset]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn decode_extent(bytes: &[u8]) -> Result<Extent, Damage> {
    let mut fields = Fields(bytes);
    let (start, count) = (PageIndex(fields.u32()), fields.u32());
    let storage = match (fields.u32(), fields.u32()) {
        (ZERO, 0) => Storage::Zero,
        (ZERO, _) => return Err(Damage::Contents("a zero extent has an offset")),
        (generation, offset) => Storage::Data { generation, offset },
    };
    Ok(Extent { start, count, storage })
}

/// Takes the next `count` records of `len` bytes off `rest`. The file's length has been checked before.
fn section<'a>(rest: &mut &'a [u8], count: u32, len: usize, crc: u32, what: &'static str) -> Result<&'a [u8], Damage> {
    let (section, after) = rest.split_at_checked(count as usize * len).ok_or(Damage::Contents("a table is cut off"))?;
    *rest = after;
    if crc32c::crc32c(section) != crc {
        return Err(Damage::Checksum(what));
    }
    Ok(section)
}

fn count(len: usize, what: &'static str) -> Result<u32, Damage> {
    u32::try_from(len).map_err(|_| Damage::Cap(what))
}

const HEADER_MAGIC: &[u8; 8] = b"WRENNHDR";
pub(crate) const HEADER_FIXED: usize = 80;
pub(crate) const HEADER_FIXED_COMPRESSED: usize = 88;
const CHUNK_LEN: usize = 8;
const EXTENT_LEN: usize = 16;
const GENERATIONS_MAX: u32 = 1 << 16;
const EXTENTS_MAX: u32 = 1 << 24;

/// The generation number of an extent of zeros.
const ZERO: u32 = u32::MAX;

/// 1 TiB.
pub(crate) const PAGES_MAX: u32 = 1 << 28;
pub(crate) const HEADER_BYTES_MAX: u64 = HEADER_FIXED_COMPRESSED as u64
    + ((GENERATIONS_MAX as u64) << 4)
    + ((EXTENTS_MAX as u64) << 4)
    + ((PAGES_MAX as u64) << 2)
    + ((PAGES_MAX as u64) << 3);
