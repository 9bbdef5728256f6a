//! Which pages were written since the last generation.
//!
//! ```text
//! arm ─► guest writes ─► collect ─► pending ─► (diff, publish) ─► commit
//!              ▲            │           │
//!              └────────────┘           └─► hold: what they hold now, copied while the guest goes on
//!   while the guest runs; and if the pause fails, pending stays
//! ```

use std::{
    fs::File,
    os::fd::{BorrowedFd, OwnedFd},
};

use crate::{
    error::{Error, Result},
    hold::{Hold, held::HeldPages, plan::plan},
    page::PageRange,
    page_set::PageSet,
    region::{Region, Regions},
    segments::Segments,
    sys::pagemap::Scan,
};

/// Finds the pages that a guest wrote, by asynchronous write protection and `PAGEMAP_SCAN` (Linux 6.7).
#[derive(Debug)]
pub struct DirtyTracker {
    pagemap: File,
    regions: Regions,
    /// The memory, where its holes are pages that never were.
    file: Option<File>,
    hold: Option<Hold>,
    /// Protection was lost, so every page that is there may have been written.
    is_lost: bool,
    pending: PageSet,
}

impl DirtyTracker {
    /// Tracks regions that were [armed](crate::arm). `pagemap` is `/proc/<pid>/pagemap` of the VMM.
    ///
    /// # Errors
    /// The regions are not whole pages or overlap.
    pub fn new(pagemap: File, regions: Vec<Region>) -> Result<Self> {
        let regions = Regions::new(regions)?;
        Ok(Self { pagemap, regions, file: None, hold: None, is_lost: false, pending: PageSet::default() })
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

    /// Makes it possible to [`hold`](Self::hold) pages. `armed` is the descriptor on which the regions were armed, and
    /// `synchronous` a new one of the same process. From the first hold on a thread serves it, for as long as the tracker lives.
    ///
    /// # Errors
    /// The tracker is not [of a file](Self::of_file), pages are larger than 4 KiB, or the kernel lacks a feature.
    pub fn hold_with(&mut self, armed: BorrowedFd<'_>, synchronous: OwnedFd) -> Result<()> {
        if self.file.is_none() {
            return Err(Error::invalid("only the pages of a file can be held"));
        }
        let armed = armed.try_clone_to_owned().map_err(|error| Error::kernel("dup", error))?;
        self.hold = Some(Hold::new(armed, synchronous, self.regions.clone())?);
        Ok(())
    }

    /// Adds the pages that were written since the last call to those that are pending, protects them again, and says
    /// which they are: sorted, and apart. What a guest that runs writes meanwhile is found by the next call.
    ///
    /// # Errors
    /// The scan failed. What it may have found by then is pending, and nothing is lost.
    pub fn collect(&mut self) -> Result<Vec<PageRange>> {
        let mut found: Vec<PageRange> = Vec::new();
        for (region, pages) in self.there()? {
            if self.is_lost {
                self.pending.insert(pages);
                found.push(pages);
                continue;
            }
            for (pages, is_held) in split(self.hold.as_ref(), pages) {
                let at = found.len();
                let scan = match is_held {
                    true => Scan::unprotected(region.addresses_of(pages)),
                    false => Scan::written(region.addresses_of(pages)).rearm(),
                };
                let scanned = scan.run(&self.pagemap, |run| found.push(pages_of(&region, &run)));
                found[at..].iter().for_each(|pages| self.pending.insert(*pages));
                // The kernel may have protected pages again that it has not told of, so any of them may be written.
                scanned.inspect_err(|_| self.pending.insert(pages))?;
                if let (true, Some(hold)) = (is_held, &self.hold) {
                    found[at..].iter().try_for_each(|pages| hold.protect(&region, *pages))?;
                }
            }
        }
        found.sort_unstable_by_key(|pages| pages.start);
        Ok(found)
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
        match &self.hold {
            Some(hold) if hold.is_wanted() => {
                return Err(Error::invalid("pages are held already, and not dropped yet"));
            }
            Some(_) if !self.is_lost => {}
            Some(_) | None => return Ok(None),
        }
        let there: Vec<PageRange> = self.there()?.into_iter().map(|(_, pages)| pages).collect();
        let (Some(hold), Some(file)) = (&mut self.hold, &self.file) else { return Ok(None) };
        let file = file.try_clone().map_err(|error| Error::kernel("dup", error))?;
        let plan = plan(pages, &there);
        let mut at_once = plan.rest.clone();
        let moved = hold.moved_by(&plan);
        let late = written(&self.pagemap, &self.regions, hold, moved, pages);
        let late = late.inspect_err(|_| self.is_lost = true)?.ranges();
        late.iter().for_each(|pages| self.pending.insert(*pages));
        let held = hold.hold(plan, file).inspect_err(|_| self.is_lost = true)?;
        at_once.extend(late);
        at_once.sort_unstable_by_key(|pages| pages.start);
        Ok(Some((held, at_once)))
    }

    /// Adds pages that the kernel does not report, such as those that the guest
    /// [discarded](crate::PageServer::removed_pages). Pages outside of the regions are left out.
    pub fn mark(&mut self, pages: PageRange) {
        self.regions.pieces_of(pages).for_each(|(_, pages)| self.pending.insert(pages));
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

    /// The pages that may have been written, by region.
    fn there(&self) -> Result<Vec<(Region, PageRange)>> {
        let mut there = Vec::new();
        for region in self.regions.iter() {
            match &self.file {
                Some(file) => {
                    for segment in Segments::new(file, region.pages()) {
                        there.push((*region, segment?));
                    }
                }
                None => there.push((*region, region.pages())),
            }
        }
        Ok(there)
    }
}

/// The pages of the memory space that a run of addresses in a region is.
fn pages_of(region: &Region, run: &std::ops::Range<u64>) -> PageRange {
    let start = region.page_at(run.start);
    PageRange { start, count: region.page_at(run.end).0 - start.0 }
}

/// What was written in `moved` pages since the last scan, but for the `known` ones. To move a run protects it anew, after
/// which nothing tells that it was written. The guest is stopped, so nothing is written between this and the moving.
fn written(
    pagemap: &File,
    regions: &Regions,
    hold: &Hold,
    moved: Vec<PageRange>,
    known: &[PageRange],
) -> Result<PageSet> {
    let mut written = PageSet::default();
    for (region, pages) in moved.into_iter().flat_map(|run| regions.pieces_of(run)) {
        for (pages, is_held) in hold.split(pages) {
            let addresses = region.addresses_of(pages);
            let scan = if is_held { Scan::unprotected(addresses) } else { Scan::written(addresses) };
            scan.run(pagemap, |run| written.insert(pages_of(region, &run)))?;
        }
    }
    known.iter().for_each(|pages| written.remove(*pages));
    Ok(written)
}

/// Pieces of some pages, and whether a hold has moved them.
fn split(hold: Option<&Hold>, pages: PageRange) -> Vec<(PageRange, bool)> {
    hold.map_or_else(|| vec![(pages, false)], |hold| hold.split(pages))
}

#[cfg(test)]
mod tests;
