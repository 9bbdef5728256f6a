//! What changed since the parent, packed.
//!
//! A page is in one of three states. `Clean` is the parent's page. `Zero` was written, and is zeros: the parent may
//! have held something else, so it is never taken for clean. `Data` goes into the data file.

use std::{collections::HashSet, fs::File, os::unix::fs::FileExt};

use crate::{
    error::{Error, Result},
    extents::Storage,
    hold::held::HeldPages,
    hold::keeper::Piece,
    id::GenerationId,
    memory_file::MemoryFile,
    packer::{Diff, Packer, PageState, written},
    page::{PAGE_BYTES, PageIndex, PageRange, ReadPages, bytes_of, whole_pages},
    reader::GenerationReader,
    segments::Segments,
};

/// Packs the `dirty` pages of a space that is in memory. Runs of pages go to the file straight from `view`.
pub(crate) fn of_dirty(mut packer: Packer<'_>, view: &[u8], dirty: &[PageRange]) -> Result<Diff> {
    let pages = whole_pages(view.len() as u64).ok_or_else(|| Error::invalid("the view is not whole pages"))?;
    let (mut end, mut batch, mut batch_pages) = (0, Vec::new(), 0);
    for range in dirty {
        if u64::from(range.start.0) < end || range.end() > u64::from(pages) {
            return Err(Error::invalid("the dirty ranges are out of order, overlap, or lie outside of the view"));
        }
        end = range.end();
        for chunk in chunks(*range) {
            batch.push((chunk.start.0, &view[bytes_of(chunk.start.0)..][..bytes_of(chunk.count)]));
            batch_pages += chunk.count;
            if batch_pages >= CHUNK_PAGES {
                packer.pack_all(batch.drain(..), written)?;
                batch_pages = 0;
            }
        }
    }
    packer.pack_all(batch, written)?;
    packer.finish(pages)
}

/// Packs the `dirty` pages of a memory that a guest may be writing: each is read once, so that what is packed is what its
/// checksum says, whatever becomes of it.
pub(crate) fn of_running(mut packer: Packer<'_>, memory: &MemoryFile, dirty: &[PageRange]) -> Result<Diff> {
    let mut buffer = vec![0; bytes_of(CHUNK_PAGES)];
    for range in dirty {
        for chunk in chunks(*range) {
            let bytes = &mut buffer[..bytes_of(chunk.count)];
            memory.read(chunk.start, bytes)?;
            packer.pack(chunk.start.0, bytes, written)?;
        }
    }
    packer.finish(memory.page_count())
}

/// Packs pages that are held, in the order in which they come.
pub(crate) fn of_held(mut packer: Packer<'_>, held: &HeldPages) -> Result<Diff> {
    while let Some(piece) = held.take() {
        let Piece { pages, bytes } = piece?;
        packer.pack(pages.start.0, &bytes, written)?;
    }
    packer.sort();
    packer.finish(held.space_pages())
}

/// Packs the allocated parts of a sparse file; its holes are clean.
pub(crate) fn of_sparse(mut packer: Packer<'_>, file: &File) -> Result<Diff> {
    let pages = file_pages(file)?;
    let mut buffer = vec![0; bytes_of(CHUNK_PAGES)];
    for segment in Segments::new(file, PageRange::new(0, pages)) {
        for chunk in chunks(segment?) {
            let bytes = &mut buffer[..bytes_of(chunk.count)];
            read_file(file, chunk.start, bytes)?;
            packer.pack(chunk.start.0, bytes, written)?;
        }
    }
    packer.finish(pages)
}

/// Packs the pages of a file that are not what the parent has. A hole is zeros, and not read.
pub(crate) fn of_comparison(mut packer: Packer<'_>, file: &File, parent: &GenerationReader) -> Result<Diff> {
    let pages = file_pages(file)?;
    let mut buffer = vec![0; bytes_of(CHUNK_PAGES)];
    let mut before = vec![0; bytes_of(CHUNK_PAGES)];
    let mut cursor = 0;
    for segment in Segments::new(file, PageRange::new(0, pages)) {
        let segment = segment?;
        packer.pack_hole(cursor, segment.start.0, parent.index());
        cursor = segment.start.0 + segment.count;
        for chunk in chunks(segment) {
            let bytes = &mut buffer[..bytes_of(chunk.count)];
            read_file(file, chunk.start, bytes)?;
            let before = &mut before[..bytes.len()];
            read_parent(parent, chunk.start, before)?;
            packer.pack(chunk.start.0, bytes, |at, now| {
                if now == &before[at..at + PAGE_BYTES] { PageState::Clean } else { written(at, now) }
            })?;
        }
    }
    packer.pack_hole(cursor, pages, parent.index());
    packer.finish(pages)
}

/// Packs those of the pages that another program read, in any order, which are not what the parent has.
pub(crate) fn of_pieces(
    mut packer: Packer<'_>,
    pages: u32,
    pieces: impl Iterator<Item = Result<ReadPages>>,
    parent: &GenerationReader,
) -> Result<Diff> {
    let mut before = Vec::new();
    for piece in pieces {
        let ReadPages { pages: range, bytes } = piece?;
        if range.end() > u64::from(pages) {
            return Err(Error::invalid("pages beyond the end of the space"));
        }
        let Some(bytes) = bytes else {
            packer.pack_hole(range.start.0, range.start.0 + range.count, parent.index());
            continue;
        };
        if bytes.len() != bytes_of(range.count) {
            return Err(Error::invalid("the bytes are not those of the pages"));
        }
        before.resize(bytes.len(), 0);
        read_parent(parent, range.start, &mut before)?;
        packer.pack(range.start.0, &bytes, |at, now| {
            if now == &before[at..at + PAGE_BYTES] { PageState::Clean } else { written(at, now) }
        })?;
    }
    packer.sort();
    packer.finish(pages)
}

/// Packs the pages that some generations hold; the others are clean.
pub(crate) fn of_folded(
    mut packer: Packer<'_>,
    reader: &GenerationReader,
    folded: &HashSet<GenerationId>,
) -> Result<Diff> {
    let index = reader.index();
    let is_folded: Vec<bool> = index.generations().iter().map(|id| folded.contains(id)).collect();
    let mut buffer = vec![0; bytes_of(CHUNK_PAGES)];
    for extent in index.extents() {
        let Storage::Data { generation, .. } = extent.storage else { continue };
        if !is_folded[generation as usize] {
            continue;
        }
        for chunk in chunks(extent.range()) {
            let bytes = &mut buffer[..bytes_of(chunk.count)];
            reader.read_at(chunk.start, bytes)?;
            packer.pack(chunk.start.0, bytes, written)?;
        }
    }
    packer.finish(index.page_count())
}

/// Cuts a segment into pieces that fit a buffer.
fn chunks(segment: PageRange) -> impl Iterator<Item = PageRange> {
    let end = segment.start.0 + segment.count;
    let starts = (segment.start.0..end).step_by(CHUNK_PAGES as usize);
    starts.map(move |start| PageRange::new(start, CHUNK_PAGES.min(end - start)))
}

fn read_file(file: &File, page: PageIndex, bytes: &mut [u8]) -> Result<()> {
    file.read_exact_at(bytes, page.byte_offset()).map_err(|source| Error::kernel("pread", source))
}

/// The parent's pages; what lies past its end is zeros.
fn read_parent(parent: &GenerationReader, page: PageIndex, bytes: &mut [u8]) -> Result<()> {
    let inside = bytes_of(parent.index().page_count().saturating_sub(page.0)).min(bytes.len());
    let (inside, outside) = bytes.split_at_mut(inside);
    outside.fill(0);
    parent.read_at(page, inside)
}

fn file_pages(file: &File) -> Result<u32> {
    let len = file.metadata().map_err(|source| Error::kernel("fstat", source))?.len();
    whole_pages(len).ok_or_else(|| Error::invalid("the file is not whole pages"))
}

/// 256 KiB: large enough for the file system to read ahead, small enough that what was checked is still in the
/// processor's cache when it is written.
const CHUNK_PAGES: u32 = 64;
