//! Written pages that the kernel has marked: asynchronous write protection, and `PAGEMAP_SCAN` (Linux 6.7).

use std::{fs::File, ops::Range, os::fd::BorrowedFd};

use crate::{
    error::{Error, Result},
    hold::{
        Hold,
        held::HeldPages,
        plan::{Plan, plan},
    },
    memory_file::MemoryFile,
    page::PageRange,
    page_set::PageSet,
    region::{Region, Regions},
    segments::Segments,
    sys::{
        pagemap::Scan,
        uffd::{Uffd, Watched},
    },
};

/// Memory that is scanned for marks.
#[derive(Debug)]
pub(super) struct Scanned {
    pagemap: File,
    regions: Regions,
    memory: Memory,
    hold: Option<Hold>,
    /// Protection was lost, so every page that is there may have been written.
    is_lost: bool,
}

/// The memory that the regions map.
#[derive(Debug)]
pub(super) enum Memory {
    /// It is in the address space of the VMM.
    Unknown,
    /// A file, whose holes are pages that never were.
    Shared(File),
    /// What was written of a file that is mapped privately.
    Private(MemoryFile),
}

impl Scanned {
    pub(super) fn new(pagemap: File, regions: Regions, memory: Memory) -> Self {
        Self { pagemap, regions, memory, hold: None, is_lost: false }
    }

    pub(super) fn regions(&self) -> &Regions {
        &self.regions
    }

    pub(super) fn hold_with(&mut self, armed: BorrowedFd<'_>, synchronous: Uffd) -> Result<()> {
        let watched = match &self.memory {
            Memory::Unknown => return Err(Error::invalid("only the pages of a file can be held")),
            Memory::Shared(_) => Watched::MissingAndWrites,
            Memory::Private(_) => Watched::Writes,
        };
        let armed = armed.try_clone_to_owned().map_err(|error| Error::kernel("dup", error))?;
        self.hold = Some(Hold::new(armed, synchronous, self.regions.clone(), watched)?);
        Ok(())
    }

    pub(super) fn collect(&mut self, pending: &mut PageSet) -> Result<Vec<PageRange>> {
        let mut found: Vec<PageRange> = Vec::new();
        for (region, pages) in self.there()? {
            if self.is_lost {
                pending.insert(pages);
                found.push(pages);
                continue;
            }
            for (pages, is_held) in split(self.hold.as_ref(), pages) {
                let at = found.len();
                let scan = match is_held {
                    true => Scan::unprotected(region.addresses_of(pages)),
                    false => self.written(region.addresses_of(pages)).rearm(),
                };
                let scanned = scan.run(&self.pagemap, |run| found.push(pages_of(&region, &run)));
                found[at..].iter().for_each(|pages| pending.insert(*pages));
                // The kernel may have protected pages again that it has not told of, so any of them may be written.
                scanned.inspect_err(|_| pending.insert(pages))?;
                if let (true, Some(hold)) = (is_held, &self.hold) {
                    found[at..].iter().try_for_each(|pages| hold.protect(&region, *pages))?;
                }
            }
        }
        found.sort_unstable_by_key(|pages| pages.start);
        Ok(found)
    }

    pub(super) fn hold(
        &mut self,
        pages: &[PageRange],
        pending: &mut PageSet,
    ) -> Result<Option<(HeldPages, Vec<PageRange>)>> {
        match &self.hold {
            Some(hold) if hold.is_wanted() => {
                return Err(Error::invalid("pages are held already, and not dropped yet"));
            }
            Some(_) if !self.is_lost => {}
            Some(_) | None => return Ok(None),
        }
        let there: Vec<PageRange> = self.there()?.into_iter().map(|(_, pages)| pages).collect();
        let memory = match &self.memory {
            Memory::Unknown => return Ok(None),
            Memory::Shared(file) => MemoryFile::shared(file.try_clone().map_err(|error| Error::kernel("dup", error))?)?,
            Memory::Private(memory) => memory.clone(),
        };
        let plan = plan(pages, &there);
        let mut at_once = plan.rest.clone();
        let late = self.written_late(&plan, pages);
        let late = late.inspect_err(|_| self.is_lost = true)?.ranges();
        late.iter().for_each(|pages| pending.insert(*pages));
        let Some(hold) = &mut self.hold else { return Ok(None) };
        let held = hold.hold(plan, memory).inspect_err(|_| self.is_lost = true)?;
        at_once.extend(late);
        at_once.sort_unstable_by_key(|pages| pages.start);
        Ok(Some((held, at_once)))
    }

    /// The pages that may have been written, by region.
    fn there(&self) -> Result<Vec<(Region, PageRange)>> {
        let mut there = Vec::new();
        for region in self.regions.iter() {
            match &self.memory {
                Memory::Shared(file) => {
                    for segment in Segments::new(file, region.pages()) {
                        there.push((*region, segment?));
                    }
                }
                Memory::Unknown | Memory::Private(_) => there.push((*region, region.pages())),
            }
        }
        Ok(there)
    }

    fn written(&self, addresses: Range<u64>) -> Scan {
        let scan = Scan::written(addresses);
        if matches!(self.memory, Memory::Private(_)) { scan.private() } else { scan }
    }

    /// What was written since the last scan in pages that a plan moves, but for the `known` ones. To move a run protects it
    /// anew, after which nothing tells that it was written. The guest is stopped, so nothing is written between this and the
    /// moving.
    fn written_late(&self, plan: &Plan, known: &[PageRange]) -> Result<PageSet> {
        let mut written = PageSet::default();
        let Some(hold) = &self.hold else { return Ok(written) };
        for (region, pages) in hold.moved_by(plan).into_iter().flat_map(|run| self.regions.pieces_of(run)) {
            for (pages, is_held) in hold.split(pages) {
                let addresses = region.addresses_of(pages);
                let scan = if is_held { Scan::unprotected(addresses) } else { self.written(addresses) };
                scan.run(&self.pagemap, |run| written.insert(pages_of(region, &run)))?;
            }
        }
        known.iter().for_each(|pages| written.remove(*pages));
        Ok(written)
    }
}

/// The pages of the memory space that a run of addresses in a region is.
fn pages_of(region: &Region, run: &Range<u64>) -> PageRange {
    let start = region.page_at(run.start);
    PageRange { start, count: region.page_at(run.end).0 - start.0 }
}

/// Pieces of some pages, and whether a hold has moved them.
fn split(hold: Option<&Hold>, pages: PageRange) -> Vec<(PageRange, bool)> {
    hold.map_or_else(|| vec![(pages, false)], |hold| hold.split(pages))
}
