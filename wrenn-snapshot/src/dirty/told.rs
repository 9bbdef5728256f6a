//! Written pages that the page server was told of: synchronous write protection.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
};

use crate::{
    error::{Error, Result},
    hold::held::HeldPages,
    memory_file::MemoryFile,
    page::{PageIndex, PageRange},
    page_set::PageSet,
    region::Regions,
    sys::uffd,
    written::{Protected, WrittenPages},
};

/// Memory whose page server notes what is written.
#[derive(Debug)]
pub(crate) struct Told {
    written: Arc<WrittenPages>,
    uffd: OwnedFd,
    regions: Regions,
    /// The memory, to read what is held.
    file: Option<File>,
    /// Whether what was held last is still wanted.
    alive: Weak<()>,
}

impl Told {
    /// `uffd` is the page server's descriptor, on which `regions` are registered for writes.
    pub(crate) fn new(written: Arc<WrittenPages>, uffd: OwnedFd, regions: Regions, file: Option<File>) -> Self {
        Self { written, uffd, regions, file, alive: Weak::new() }
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    pub(super) fn collect(&mut self, pending: &mut PageSet) -> Result<Vec<PageRange>> {
        let mut found = Vec::new();
        let taken = self.written.take(|pages| self.protect(pages), &mut found);
        found.iter().for_each(|pages| pending.insert(*pages));
        taken.map(|()| found)
    }

    /// The page server asks before each write what is held, so there is nothing to move, and nothing too small to be held.
    pub(super) fn hold(
        &mut self,
        pages: &[PageRange],
        pending: &mut PageSet,
    ) -> Result<Option<(HeldPages, Vec<PageRange>)>> {
        if self.alive.strong_count() > 0 {
            return Err(Error::invalid("pages are held already, and not dropped yet"));
        }
        let Some(file) = &self.file else { return Ok(None) };
        let file = file.try_clone().map_err(|error| Error::kernel("dup", error))?;
        let space_pages = u32::try_from(self.regions.page_end()).unwrap_or(u32::MAX);
        let held = HeldPages::of_memory(pages, MemoryFile::shared(file)?, space_pages);
        let written = self.written.take_and_keep(&held.keeper, |pages| self.protect(pages))?;
        let mut late = PageSet::default();
        written.iter().for_each(|pages| late.insert(*pages));
        // What was written again is held as it is now.
        pages.iter().for_each(|pages| late.remove(*pages));
        let late = late.ranges();
        late.iter().for_each(|pages| pending.insert(*pages));
        self.alive = Arc::downgrade(&held.alive);
        Ok(Some((held, late)))
    }

    fn protect(&self, pages: PageRange) -> Result<Protected> {
        for (region, pages) in self.regions.pieces_of(pages) {
            let pages = region.whole_granules(pages);
            let (addr, len) = (region.addr_of(pages.start), PageIndex(pages.count).byte_offset());
            if !uffd::try_protect(self.uffd.as_fd(), addr, len)? {
                return Ok(Protected::NotYet);
            }
        }
        Ok(Protected::Yes)
    }
}
