//! Which pages were written since the last generation.
//!
//! ```text
//! arm ─► guest writes ─► collect ─► pending ─► (diff, publish) ─► commit
//!              ▲            │           │
//!              └────────────┘           └─► hold: what they hold now, copied while the guest goes on
//!   while the guest runs; and if the pause fails, pending stays
//! ```

mod scanned;
pub(crate) mod told;

use std::{fs::File, os::fd::BorrowedFd};

use crate::{
    dirty::{
        scanned::{Memory, Scanned},
        told::Told,
    },
    error::{Error, Result},
    hold::held::HeldPages,
    memory_file::MemoryFile,
    page::PageRange,
    page_set::PageSet,
    region::{Region, Regions},
    sys::uffd::Uffd,
};

/// Finds the pages that a guest wrote.
///
/// Either the kernel marks them, by asynchronous write protection, and `PAGEMAP_SCAN` finds the marks (Linux 6.7): then
/// the tracker is made of a [pagemap](Self::new). Or the page server is told of each first write, by synchronous
/// protection, which shared memory has from Linux 5.19 on: then the [server](crate::PageServer::tracker) makes it.
#[derive(Debug)]
pub struct DirtyTracker {
    way: Way,
    pending: PageSet,
}

#[derive(Debug)]
enum Way {
    Scanned(Scanned),
    Told(Told),
}

impl DirtyTracker {
    /// Tracks regions that were [armed](crate::arm) for asynchronous protection. `pagemap` is `/proc/<pid>/pagemap` of the
    /// VMM.
    ///
    /// # Errors
    /// The regions are not whole pages or overlap.
    pub fn new(pagemap: File, regions: Vec<Region>) -> Result<Self> {
        Ok(Self::by(Way::Scanned(Scanned::new(pagemap, Regions::new(regions)?, Memory::Unknown))))
    }

    /// Tracks a region that maps a file privately, which is all of the memory space, and was [armed as such](crate::arm_private).
    /// The guest's own pages are those that it wrote. `memory` is the [mapping](MemoryFile::private).
    ///
    /// # Errors
    /// The region is not whole pages.
    pub fn of_private(pagemap: File, region: Region, memory: MemoryFile) -> Result<Self> {
        let regions = Regions::new(vec![region])?;
        Ok(Self::by(Way::Scanned(Scanned::new(pagemap, regions, Memory::Private(memory)))))
    }

    /// Tracks regions that map `file`, a memfd, and were [armed as such](crate::arm_file). A hole in the file is a page
    /// that was never put in place, and has not been written. So nobody punches holes into it, or
    /// [marks](Self::mark) what was punched.
    ///
    /// # Errors
    /// The regions are not whole pages or overlap.
    pub fn of_file(pagemap: File, regions: Vec<Region>, file: File) -> Result<Self> {
        Ok(Self::by(Way::Scanned(Scanned::new(pagemap, Regions::new(regions)?, Memory::Shared(file)))))
    }

    pub(crate) fn told(told: Told) -> Self {
        Self::by(Way::Told(told))
    }

    fn by(way: Way) -> Self {
        Self { way, pending: PageSet::default() }
    }

    /// Makes it possible to [`hold`](Self::hold) pages. `armed` is the descriptor on which the regions were armed, and
    /// `synchronous` a new one of the same process. From the first hold on a thread serves it, for as long as the tracker lives.
    /// A tracker of a page server needs none.
    ///
    /// # Errors
    /// The tracker is not [of a file](Self::of_file) or [of a private mapping](Self::of_private), pages are larger than 4 KiB, or the kernel lacks a feature.
    pub fn hold_with(&mut self, armed: BorrowedFd<'_>, synchronous: impl Into<Uffd>) -> Result<()> {
        match &mut self.way {
            Way::Scanned(scanned) => scanned.hold_with(armed, synchronous.into()),
            Way::Told(_) => Err(Error::invalid("the page server holds pages, and needs no second descriptor")),
        }
    }

    /// Adds the pages that were written since the last call to those that are pending, protects them again, and says
    /// which they are: sorted, and apart. What a guest that runs writes meanwhile is found by the next call.
    ///
    /// With synchronous protection, up to 60 KiB after what the guest writes in order may count as written, too.
    ///
    /// # Errors
    /// The scan, or the protection, failed. What it may have found by then is pending, and nothing is lost.
    pub fn collect(&mut self) -> Result<Vec<PageRange>> {
        match &mut self.way {
            Way::Scanned(scanned) => scanned.collect(&mut self.pending),
            Way::Told(told) => told.collect(&mut self.pending),
        }
    }

    /// Makes pages keep what they hold now until they are copied, although the guest goes on. Call it while the guest is
    /// stopped, with pages that were collected since it stopped. `None` if there is no [second descriptor](Self::hold_with);
    /// else the pages, and those that have to be copied before the guest goes on: they are few, or scattered, or were
    /// written since they were collected, which a device of the VMM may do. The latter are pending from then on. Until the
    /// next hold, up to 60 KiB after what the guest writes in order may count as written, too.
    ///
    /// # Errors
    /// The pages of an earlier hold are not dropped yet; or protection could not be read or changed, and from then on every
    /// page counts as written.
    pub fn hold(&mut self, pages: &[PageRange]) -> Result<Option<(HeldPages, Vec<PageRange>)>> {
        match &mut self.way {
            Way::Scanned(scanned) => scanned.hold(pages, &mut self.pending),
            Way::Told(told) => told.hold(pages, &mut self.pending),
        }
    }

    /// Adds pages that the kernel does not report, such as those that the guest
    /// [discarded](crate::PageServer::removed_pages). Pages outside of the regions are left out.
    pub fn mark(&mut self, pages: PageRange) {
        let regions = match &self.way {
            Way::Scanned(scanned) => scanned.regions(),
            Way::Told(told) => told.regions(),
        };
        regions.pieces_of(pages).for_each(|(_, pages)| self.pending.insert(pages));
    }

    /// The pages of the memory space that were written since the last [`commit`](Self::commit) and have been
    /// collected: sorted, and apart.
    #[must_use]
    pub fn pending(&self) -> Vec<PageRange> {
        self.pending.ranges()
    }

    /// Forgets the pending pages. Call it once a generation that holds all of them is published, and before the next
    /// [`collect`](Self::collect).
    pub fn commit(&mut self) {
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests;
