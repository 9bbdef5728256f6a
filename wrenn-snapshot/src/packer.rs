//! Packing changed pages into a data file.

use std::io::IoSlice;

use crate::{
    data::writer::DataWriter,
    error::{Error, Result},
    extents::{Extent, ExtentIndex, Storage, push_joined},
    id::GenerationId,
    page::{PAGE_BYTES, PageIndex, is_zero, whole_pages},
};

/// The changed pages of a space: an index of them alone, and a checksum for each that was packed.
#[derive(Debug)]
pub(crate) struct Diff {
    pub(crate) index: ExtentIndex,
    pub(crate) page_crcs: Vec<u32>,
}

/// What became of a page since the parent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PageState {
    Clean,
    Zero,
    Data,
}

/// The state of a page that is known to have been written.
pub(crate) fn written(_at: usize, page: &[u8]) -> PageState {
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
    pub(crate) fn pack(
        &mut self,
        start: u32,
        bytes: &[u8],
        state_of: impl Fn(usize, &[u8]) -> PageState,
    ) -> Result<()> {
        self.pack_all([(start, bytes)], state_of)
    }

    /// Packs pieces of consecutive pages, each with its first page, by one write for as many as it takes.
    pub(crate) fn pack_all<'v>(
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
    pub(crate) fn pack_hole(&mut self, from: u32, to: u32, parent: &ExtentIndex) {
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

    /// Puts what was packed in no order into order.
    pub(crate) fn sort(&mut self) {
        self.extents.sort_unstable_by_key(|extent| extent.start);
    }

    pub(crate) fn finish(self, page_count: u32) -> Result<Diff> {
        let index = ExtentIndex::new(page_count, vec![self.generation], self.extents);
        Ok(Diff { index: index.map_err(|error| Error::invalid(error.to_string()))?, page_crcs: self.page_crcs })
    }
}

fn page_number(bytes: usize) -> Result<u32> {
    whole_pages(bytes as u64).ok_or_else(|| Error::invalid("not whole pages"))
}
