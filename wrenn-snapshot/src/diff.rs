//! What changed since the parent, packed.
//!
//! A page is in one of three states. `Clean` is the parent's page. `Zero` was written, and is zeros: the parent may
//! have held something else, so it is never taken for clean. `Data` goes into the data file.

use std::{collections::HashSet, fs::File, io::IoSlice, os::unix::fs::FileExt};

use nix::{errno::Errno, unistd::Whence};

use crate::{
    data::DataWriter,
    error::{Error, Result},
    extents::{Extent, ExtentIndex, Storage, push_joined},
    hold::{HeldPages, Piece},
    id::GenerationId,
    page::{PAGE_BYTES, PageIndex, PageRange, bytes_of, is_zero, whole_pages},
    source::GenerationReader,
};

/// The changed pages of a space: an index of them alone, and a checksum for each that was packed.
#[derive(Debug)]
pub(crate) struct Diff {
    pub(crate) index: ExtentIndex,
    pub(crate) page_crcs: Vec<u32>,
}

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

/// Packs the `dirty` pages of a file that a guest may be writing: each is read once, so that what is packed is what its
/// checksum says, whatever becomes of it.
pub(crate) fn of_running(mut packer: Packer<'_>, file: &File, dirty: &[PageRange]) -> Result<Diff> {
    let pages = file_pages(file)?;
    let mut buffer = vec![0; bytes_of(CHUNK_PAGES)];
    for range in dirty {
        for chunk in chunks(*range) {
            let bytes = &mut buffer[..bytes_of(chunk.count)];
            read_file(file, chunk.start, bytes)?;
            packer.pack(chunk.start.0, bytes, written)?;
        }
    }
    packer.finish(pages)
}

/// Packs pages that are held, in the order in which they come.
pub(crate) fn of_held(mut packer: Packer<'_>, held: &HeldPages) -> Result<Diff> {
    while let Some(piece) = held.take() {
        let Piece { pages, bytes } = piece?;
        packer.pack(pages.start.0, &bytes, written)?;
    }
    packer.extents.sort_unstable_by_key(|extent| extent.start);
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

/// What became of a page since the parent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageState {
    Clean,
    Zero,
    Data,
}

/// The state of a page that is known to have been written.
fn written(_at: usize, page: &[u8]) -> PageState {
    if is_zero(page) { PageState::Zero } else { PageState::Data }
}

/// Appends pages to a data file, and keeps the extents and checksums that describe them.
pub(crate) struct Packer<'a> {
    generation: GenerationId,
    file: &'a mut DataWriter,
    extents: Vec<Extent>,
    page_crcs: Vec<u32>,
}

impl<'a> Packer<'a> {
    /// Appends to a file that holds the pages of `page_crcs` already.
    pub(crate) fn new(generation: GenerationId, file: &'a mut DataWriter, page_crcs: Vec<u32>) -> Self {
        Self { generation, file, extents: Vec::new(), page_crcs }
    }

    /// Packs consecutive pages. `state_of` is given each page and its offset in `bytes`.
    fn pack(&mut self, start: u32, bytes: &[u8], state_of: impl Fn(usize, &[u8]) -> PageState) -> Result<()> {
        self.pack_all([(start, bytes)], state_of)
    }

    /// Packs pieces of consecutive pages, each with its first page, by one write for as many as it takes.
    fn pack_all<'v>(
        &mut self,
        pieces: impl IntoIterator<Item = (u32, &'v [u8])>,
        state_of: impl Fn(usize, &[u8]) -> PageState,
    ) -> Result<()> {
        let mut gathered = Vec::new();
        for (start, bytes) in pieces {
            let mut run = (PageState::Clean, 0);
            for (number, page) in bytes.chunks_exact(PAGE_BYTES).enumerate() {
                let at = number * PAGE_BYTES;
                let state = state_of(at, page);
                if state != run.0 {
                    gathered.extend(self.pack_run(start, &bytes[run.1..at], run.1, run.0)?);
                    run = (state, at);
                }
            }
            gathered.extend(self.pack_run(start, &bytes[run.1..], run.1, run.0)?);
        }
        self.file.append_all(&mut gathered)
    }

    /// Notes a run of pages alike, and returns what is to be written of it.
    fn pack_run<'v>(
        &mut self,
        start: u32,
        bytes: &'v [u8],
        at: usize,
        state: PageState,
    ) -> Result<Option<IoSlice<'v>>> {
        let (first, pages) = (start + page_number(at)?, page_number(bytes.len())?);
        match state {
            PageState::Data => {
                let offset = u32::try_from(self.page_crcs.len()).map_err(|_| Error::invalid("too many pages"))?;
                self.page_crcs.extend(bytes.chunks_exact(PAGE_BYTES).map(crc32c::crc32c));
                self.push(first, pages, Storage::Data { generation: 0, offset });
                return Ok(Some(IoSlice::new(bytes)));
            }
            PageState::Zero => self.push(first, pages, Storage::Zero),
            PageState::Clean => {}
        }
        Ok(None)
    }

    /// The pages `from..to` are zeros now: those that the parent holds have changed.
    fn pack_hole(&mut self, from: u32, to: u32, parent: &ExtentIndex) {
        let mut page = from;
        while page < to {
            let Some(run) = parent.lookup(PageIndex(page)) else { return };
            let count = run.pages.min(to - page);
            if run.storage != Storage::Zero {
                self.push(page, count, Storage::Zero);
            }
            page += count;
        }
    }

    fn push(&mut self, start: u32, count: u32, storage: Storage) {
        push_joined(&mut self.extents, Extent { start: PageIndex(start), count, storage });
    }

    fn finish(self, page_count: u32) -> Result<Diff> {
        let index = ExtentIndex::new(page_count, vec![self.generation], self.extents);
        Ok(Diff { index: index.map_err(|error| Error::invalid(error.to_string()))?, page_crcs: self.page_crcs })
    }
}

/// The allocated parts of a file, widened to whole pages. Moves the file's position.
pub(crate) struct Segments<'a> {
    file: &'a File,
    pages: u32,
    next: u32,
}

impl<'a> Segments<'a> {
    /// Those among some pages.
    pub(crate) fn new(file: &'a File, among: PageRange) -> Self {
        Self { file, pages: among.start.0 + among.count, next: among.start.0 }
    }

    fn find_next(&self) -> std::result::Result<Option<PageRange>, Errno> {
        if self.next >= self.pages {
            return Ok(None);
        }
        let start = match self.seek(i64::from(self.next) * PAGE_LEN, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(None),
            start => start?,
        };
        let end = self.seek(start, Whence::SeekHole)?;
        let clamp = |page: i64| u32::try_from(page).unwrap_or(self.pages).min(self.pages);
        let (start, end) = (clamp(start / PAGE_LEN).max(self.next), clamp((end + PAGE_LEN - 1) / PAGE_LEN));
        Ok((start < end).then(|| PageRange::new(start, end - start)))
    }

    fn seek(&self, offset: i64, whence: Whence) -> std::result::Result<i64, Errno> {
        nix::unistd::lseek(self.file, offset, whence)
    }
}

impl Iterator for Segments<'_> {
    type Item = Result<PageRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find_next().map_err(|errno| Error::kernel("lseek", errno)).transpose();
        self.next = match &found {
            Some(Ok(range)) => range.start.0 + range.count,
            _ => self.pages,
        };
        found
    }
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

fn page_number(bytes: usize) -> Result<u32> {
    whole_pages(bytes as u64).ok_or_else(|| Error::invalid("not whole pages"))
}

const PAGE_LEN: i64 = 4096;

/// 256 KiB: large enough for the file system to read ahead, small enough that what was checked is still in the
/// processor's cache when it is written.
const CHUNK_PAGES: u32 = 64;
