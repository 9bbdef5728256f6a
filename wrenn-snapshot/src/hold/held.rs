//! Pages that are held, as a copier has them.

use std::sync::Arc;

use crate::{
    error::Result,
    hold::keeper::{Keeper, Piece},
    page::PageRange,
};

/// How a piece of the guest's memory is read.
pub(crate) type Read = Box<dyn Fn(PageRange) -> Result<Vec<u8>> + Send + Sync>;

/// Pages that keep what they held when they were [held](crate::DirtyTracker::hold), until they are
/// [added](crate::SpaceWriter::add_held) to a generation. Dropping it lets them go.
pub struct HeldPages {
    pub(crate) keeper: Arc<Keeper<Read>>,
    pub(crate) pages: u64,
    pub(crate) space_pages: u32,
    pub(crate) _alive: Arc<()>,
}

impl HeldPages {
    /// How many pages of 4 KiB there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.pages
    }

    /// Pages of a memory that nobody writes to.
    #[cfg(test)]
    pub(crate) fn of(memory: Vec<u8>, pages: Vec<PageRange>) -> Self {
        let count = pages.iter().map(|range| u64::from(range.count)).sum();
        let space_pages = u32::try_from(memory.len() / crate::page::PAGE_BYTES).unwrap_or(u32::MAX);
        let read: Read = Box::new(move |pages| {
            Ok(memory[crate::page::bytes_of(pages.start.0)..][..crate::page::bytes_of(pages.count)].to_vec())
        });
        Self { keeper: Arc::new(Keeper::new(pages, read)), pages: count, space_pages, _alive: Arc::new(()) }
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
