//! Pages that are held, as a copier has them.

use std::sync::Arc;

use crate::{
    error::Result,
    hold::{
        in_order::AHEAD_PAGES_MAX,
        keeper::{Keeper, Piece},
    },
    memory_file::MemoryFile,
    page::{PageRange, bytes_of},
};

/// How a piece of the guest's memory is read.
pub(crate) type Read = Box<dyn Fn(PageRange) -> Result<Vec<u8>> + Send + Sync>;

/// Pages that keep what they held when they were [held](crate::DirtyTracker::hold), until they are
/// [added](crate::SpaceWriter::add_held) to a generation. Dropping it lets them go.
pub struct HeldPages {
    pub(crate) keeper: Arc<Keeper<Read>>,
    pub(crate) pages: u64,
    pub(crate) space_pages: u32,
    /// Somebody wants them for as long as this is there.
    pub(crate) alive: Arc<()>,
}

impl HeldPages {
    /// How many pages of 4 KiB there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.pages
    }

    /// Pages of a memory to which nobody writes before the keeper has been asked.
    pub(crate) fn of_memory(pages: &[PageRange], memory: MemoryFile, space_pages: u32) -> Self {
        let pieces = pages.iter().copied().flat_map(pieces).collect();
        let read: Read = Box::new(move |pages| read(&memory, pages));
        let count = pages.iter().map(|range| u64::from(range.count)).sum();
        Self { keeper: Arc::new(Keeper::new(pieces, read)), pages: count, space_pages, alive: Arc::new(()) }
    }

    /// Pages of a memory that nobody writes to.
    #[cfg(test)]
    pub(crate) fn of(memory: Vec<u8>, pages: Vec<PageRange>) -> Self {
        let count = pages.iter().map(|range| u64::from(range.count)).sum();
        let space_pages = u32::try_from(memory.len() / crate::page::PAGE_BYTES).unwrap_or(u32::MAX);
        let read: Read = Box::new(move |pages| {
            Ok(memory[crate::page::bytes_of(pages.start.0)..][..crate::page::bytes_of(pages.count)].to_vec())
        });
        Self { keeper: Arc::new(Keeper::new(pages, read)), pages: count, space_pages, alive: Arc::new(()) }
    }

    /// How many pages the memory space has.
    pub(crate) fn space_pages(&self) -> u32 {
        self.space_pages
    }

    /// The next piece, in no order.
    pub(crate) fn take(&self) -> Option<Result<Piece>> {
        self.keeper.take()
    }
}

impl Drop for HeldPages {
    fn drop(&mut self) {
        self.keeper.abandon();
    }
}

impl std::fmt::Debug for HeldPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldPages").field("pages", &self.pages).finish_non_exhaustive()
    }
}

fn pieces(range: PageRange) -> impl Iterator<Item = PageRange> {
    let (end, most) = (range.start.0 + range.count, AHEAD_PAGES_MAX);
    (range.start.0..end).step_by(most as usize).map(move |at| PageRange::new(at, most.min(end - at)))
}

fn read(memory: &MemoryFile, pages: PageRange) -> Result<Vec<u8>> {
    let mut bytes = vec![0; bytes_of(pages.count)];
    memory.read(pages.start, &mut bytes)?;
    Ok(bytes)
}
