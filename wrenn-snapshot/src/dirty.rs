//! Which pages were written since the last generation.
//!
//! ```text
//! arm ─► guest writes ─► collect ─► pending ─► (diff, publish) ─► commit
//!              ▲            │
//!              └────────────┘  while the guest runs; and if the pause fails, pending stays
//! ```

use std::{fs::File, ops::Range};

use bitvec::vec::BitVec;

use crate::{
    diff::Segments,
    error::Result,
    page::{PageIndex, PageRange},
    region::{Region, Regions},
    sys::pagemap::Scan,
};

/// Finds the pages that a guest wrote, by asynchronous write protection and `PAGEMAP_SCAN` (Linux 6.7).
#[derive(Debug)]
pub struct DirtyTracker {
    pagemap: File,
    regions: Regions,
    /// The memory, where its holes are pages that never were.
    file: Option<File>,
    pending: BitVec,
}

impl DirtyTracker {
    /// Tracks regions that were [armed](crate::arm). `pagemap` is `/proc/<pid>/pagemap` of the VMM.
    ///
    /// # Errors
    /// The regions are not whole pages or overlap.
    pub fn new(pagemap: File, regions: Vec<Region>) -> Result<Self> {
        let regions = Regions::new(regions)?;
        let pages = usize::try_from(regions.page_end()).unwrap_or(usize::MAX);
        Ok(Self { pagemap, regions, file: None, pending: BitVec::repeat(false, pages) })
    }

    /// Tracks regions that map `file`, a memfd, and were [armed as such](crate::arm_file). A hole in the file is a page
    /// that was never put in place, and has not been written. So nobody punches holes into it, or
    /// [marks](Self::mark) what was punched.
    ///
    /// # Errors
    /// The regions are not whole pages or overlap.
    pub fn of_file(pagemap: File, regions: Vec<Region>, file: File) -> Result<Self> {
        Ok(Self { file: Some(file), ..Self::new(pagemap, regions)? })
    }

    /// Adds the pages that were written since the last call to those that are pending, protects them again, and says
    /// which they are: sorted, and apart. What a guest that runs writes meanwhile is found by the next call.
    ///
    /// # Errors
    /// The scan failed. What it had found by then is pending, and nothing is lost.
    pub fn collect(&mut self) -> Result<Vec<PageRange>> {
        let Self { pagemap, regions, file, pending } = self;
        let mut found: Vec<PageRange> = Vec::new();
        for region in regions.iter() {
            let there = match file {
                Some(file) => data_of(file, region)?,
                None => std::iter::once(region.host_addr..region.host_end()).collect(),
            };
            for addresses in there {
                Scan::written(addresses).rearm().run(pagemap, |run| {
                    let pages = pages_of(region, &run);
                    set(pending, pages);
                    found.push(pages);
                })?;
            }
        }
        found.sort_unstable_by_key(|pages| pages.start);
        Ok(found)
    }

    /// Adds pages that the kernel does not report, such as those that the guest
    /// [discarded](crate::PageServer::removed_pages). Pages outside of the regions are left out.
    pub fn mark(&mut self, pages: PageRange) {
        set(&mut self.pending, pages);
    }

    /// The pages of the memory space that were written since the last [`commit`](Self::commit) and have been
    /// collected: sorted, and apart.
    #[must_use]
    pub fn pending(&self) -> Vec<PageRange> {
        let mut ranges: Vec<PageRange> = Vec::new();
        for page in self.pending.iter_ones() {
            let page = u32::try_from(page).unwrap_or(u32::MAX);
            match ranges.last_mut() {
                Some(last) if last.end() == u64::from(page) => last.count += 1,
                _ => ranges.push(PageRange::new(page, 1)),
            }
        }
        ranges
    }

    /// Forgets the pending pages. Call it once a generation that holds all of them is published, and before the next
    /// [`collect`](Self::collect).
    pub fn commit(&mut self) {
        self.pending.fill(false);
    }
}

/// The addresses of a region at which its file has data.
fn data_of(file: &File, region: &Region) -> Result<Vec<Range<u64>>> {
    let mut data = Vec::new();
    for segment in Segments::new(file, region.pages()) {
        let segment = segment?;
        data.push(
            region.addr_of(segment.start)..region.addr_of(segment.start) + PageIndex(segment.count).byte_offset(),
        );
    }
    Ok(data)
}

/// The pages of the memory space that a run of addresses in a region is.
fn pages_of(region: &Region, run: &std::ops::Range<u64>) -> PageRange {
    let start = region.page_at(run.start);
    PageRange { start, count: region.page_at(run.end).0 - start.0 }
}

fn set(pending: &mut BitVec, pages: PageRange) {
    let end = usize::try_from(pages.end()).unwrap_or(usize::MAX).min(pending.len());
    let start = (pages.start.0 as usize).min(end);
    pending[start..end].fill(true);
}
