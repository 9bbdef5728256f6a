//! Which pages of a guest are in place, and putting them there.

use std::sync::Arc;

use bitvec::vec::BitVec;

use crate::{
    counters::{Origin, ServeCounters},
    error::Result,
    hold::in_order::{AHEAD_PAGES_MAX, InOrder},
    options::{ServeOptions, Tracking},
    page::{PAGE_BYTES, PAGE_BYTES_U64, PageIndex, PageRange, bytes_of},
    page_log::PageLog,
    region::{Region, Regions},
    source::PageRun,
    sys::uffd::{Copied, Install, Uffd},
    touched::TouchedPages,
    written::WrittenPages,
};

/// How far an installation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Every page is in place.
    Done,
    /// The kernel put the rest off.
    Again,
    /// The guest is gone.
    Gone,
}

/// A page's state, as far as the server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Residence {
    /// Never put in place; the source has it.
    Absent,
    /// Put in place.
    Installed,
    /// Discarded by the guest; zeros until it is written.
    Removed,
}

/// What to put in place, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installation<'a> {
    pub(crate) region: &'a Region,
    pub(crate) first: PageIndex,
    /// Whole granules.
    pub(crate) run: PageRun<'a>,
    /// A page that a thread waits to write.
    pub(crate) written: Option<PageIndex>,
    pub(crate) origin: Origin,
}

/// The pages of a guest that are in place.
#[derive(Debug)]
pub(crate) struct ResidentPages {
    pub(crate) uffd: Uffd,
    tracking: Tracking,
    /// Pages that are not absent.
    known: BitVec,
    removed: BitVec,
    absent: u64,
    pub(crate) removed_log: Arc<PageLog>,
    pub(crate) written: Arc<WrittenPages>,
    order: InOrder,
    pub(crate) touched: Arc<TouchedPages>,
    pub(crate) counters: Arc<ServeCounters>,
    zeros: Vec<u8>,
}

impl ResidentPages {
    /// `pages_max` is the longest run that will be installed at once.
    pub(crate) fn new(uffd: Uffd, regions: &Regions, options: &ServeOptions, pages_max: u32) -> Self {
        let pages = usize::try_from(regions.page_end()).unwrap_or(usize::MAX);
        Self {
            uffd,
            tracking: options.tracking,
            known: BitVec::repeat(false, pages),
            removed: BitVec::repeat(false, pages),
            absent: regions.page_count(),
            removed_log: Arc::default(),
            written: Arc::default(),
            order: InOrder::default(),
            touched: Arc::new(TouchedPages::new(options.record_pages_max)),
            counters: Arc::new(ServeCounters::new(regions.page_count())),
            zeros: zeros(pages_max),
        }
    }

    pub(crate) fn residence(&self, page: PageIndex) -> Residence {
        let page = page.0 as usize;
        match (self.removed[page], self.known[page]) {
            (true, _) => Residence::Removed,
            (false, true) => Residence::Installed,
            (false, false) => Residence::Absent,
        }
    }

    /// Whether no page is absent.
    pub(crate) fn is_complete(&self) -> bool {
        self.absent == 0
    }

    /// The absent pages around those of `middle`, which are absent, inside `bounds` and without a gap.
    pub(crate) fn absent_around(&self, middle: PageRange, bounds: PageRange) -> PageRange {
        let absent = |page: &u32| !self.known[*page as usize];
        let (middle_end, bounds_end) = (middle.start.0 + middle.count, bounds.start.0 + bounds.count);
        let start = (bounds.start.0..middle.start.0).rev().take_while(absent).last().unwrap_or(middle.start.0);
        let end = (middle_end..bounds_end).take_while(absent).last().map_or(middle_end, |last| last + 1);
        PageRange::new(start, end - start)
    }

    /// The first run of absent pages among some.
    pub(crate) fn first_absent(&self, pages: PageRange) -> Option<PageRange> {
        let known = &self.known[range_of(pages)];
        let start = known.first_zero()?;
        let count = known[start..].first_one().unwrap_or(known.len() - start);
        let at = |pages: usize| u32::try_from(pages).ok();
        Some(PageRange::new(pages.start.0 + at(start)?, at(count)?))
    }

    /// The guest discarded pages.
    pub(crate) fn remove(&mut self, region: &Region, pages: PageRange) {
        debug_assert!(pages.end() <= region.pages().end(), "a discard is inside of its region");
        self.set_known(pages, true);
        self.removed_log.push(pages);
        self.counters.count_removed(pages.count.into());
    }

    /// Lets the threads go on that wait to write to a protected page, and those that come to the next ones soon.
    pub(crate) fn unprotect(&mut self, region: &Region, page: PageIndex) -> Result<Progress> {
        let pages = self.let_through_at(region, page);
        let len = u64::from(pages.count) * PAGE_BYTES_U64;
        let unprotected = self.written.let_through(pages, || self.uffd.unprotect(region.addr_of(page), len))?;
        Ok(match unprotected {
            Copied::Bytes(_) | Copied::Exists | Copied::Unmapped => Progress::Done,
            Copied::Again => Progress::Again,
            Copied::Gone => Progress::Gone,
        })
    }

    /// The granule that starts at a page, with those after it that are there and may be written next.
    fn let_through_at(&mut self, region: &Region, page: PageIndex) -> PageRange {
        if region.granule.pages() > 1 {
            return region.granule_of(page);
        }
        let end = u32::try_from(region.pages().end().min(u64::from(page.0 + AHEAD_PAGES_MAX))).unwrap_or(u32::MAX);
        let is_there = |at: &u32| self.residence(PageIndex(*at)) == Residence::Installed;
        let most = (page.0..end).take_while(is_there).count();
        // The page itself is there, though perhaps not by this server.
        let most = u32::try_from(most).unwrap_or(1).max(1);
        PageRange { start: page, count: self.order.ahead(page.0, most) }
    }

    /// Puts a run of pages in place.
    pub(crate) fn install(&mut self, what: &Installation<'_>) -> Result<Progress> {
        let (first, end) = (what.first.0, what.first.0 + what.run.pages());
        let Some(page) = what.written.filter(|page| (first..end).contains(&page.0)) else {
            return self.install_piece(what, first, end, self.unwritten());
        };
        let written = what.region.granule_of(page);
        let written_end = written.start.0 + written.count;
        // The one that somebody waits for comes first. It alone is dirty.
        for (from, to, install) in [
            (written.start.0, written_end, Install::Dirty),
            (first, written.start.0, self.unwritten()),
            (written_end, end, self.unwritten()),
        ] {
            let progress = self.install_piece(what, from, to, install)?;
            if progress != Progress::Done {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// How pages are installed that nobody writes.
    fn unwritten(&self) -> Install {
        match self.tracking {
            Tracking::Async | Tracking::Sync => Install::Clean,
            Tracking::Untracked => Install::Dirty,
        }
    }

    /// Puts the pages `from..to` of a run in place.
    fn install_piece(&mut self, what: &Installation<'_>, from: u32, to: u32, install: Install) -> Result<Progress> {
        let granule = what.region.granule;
        let (mut page, mut is_in_one_mapping) = (from, true);
        while page < to {
            let end = if is_in_one_mapping { to } else { page + granule.pages() };
            let bytes = match what.run {
                PageRun::Data(bytes) => &bytes[bytes_of(page - what.first.0)..bytes_of(end - what.first.0)],
                PageRun::Zero(_) => &self.zeros[..bytes_of(end - page).min(self.zeros.len())],
            };
            let addr = what.region.addr_of(PageIndex(page));
            let copied = match (install, self.tracking) {
                // A granule, and nothing before or after it.
                (Install::Dirty, Tracking::Sync) => {
                    let granule = PageRange::new(page, end - page);
                    self.written.put_in_place(granule, || self.uffd.copy(addr, bytes, install))?
                }
                _ => self.uffd.copy(addr, bytes, install)?,
            };
            let pages = match copied {
                Copied::Bytes(len) => u32::try_from(len / PAGE_BYTES_U64).unwrap_or(0),
                Copied::Exists => {
                    self.uffd.wake(addr, granule.bytes())?;
                    self.set_known(PageRange::new(page, granule.pages()), false);
                    page += granule.pages();
                    continue;
                }
                Copied::Unmapped if end - page > granule.pages() => {
                    is_in_one_mapping = false;
                    continue;
                }
                // Nobody waits for it: whoever did was woken when the mapping went.
                Copied::Unmapped => {
                    page += granule.pages();
                    continue;
                }
                Copied::Again => 0,
                Copied::Gone => return Ok(Progress::Gone),
            };
            if pages == 0 {
                return Ok(Progress::Again);
            }
            self.installed(what, PageRange::new(page, pages));
            page += pages;
        }
        Ok(Progress::Done)
    }

    fn installed(&mut self, what: &Installation<'_>, pages: PageRange) {
        let was_absent = self.residence(pages.start) == Residence::Absent;
        self.set_known(pages, false);
        self.counters.count_installed(what.origin, pages.count.into(), matches!(what.run, PageRun::Zero(_)));
        // What was discarded is nothing that the next restore can read ahead.
        if what.origin == Origin::Fault && was_absent {
            self.touched.record(pages.start, pages.count);
        }
    }

    fn set_known(&mut self, pages: PageRange, removed: bool) {
        let range = range_of(pages);
        self.absent -= self.known[range.clone()].count_zeros() as u64;
        self.known[range.clone()].fill(true);
        self.removed[range].fill(removed);
    }
}

/// Zeros in memory that is there. What was never written is not, and to copy out of that the kernel takes another huge
/// page for a moment.
fn zeros(pages: u32) -> Vec<u8> {
    let mut zeros = vec![1; bytes_of(pages)];
    std::hint::black_box(&mut zeros).fill(0);
    zeros
}

fn range_of(pages: PageRange) -> std::ops::Range<usize> {
    pages.start.0 as usize..pages.start.0 as usize + pages.count as usize
}

const _: () = assert!(PAGE_BYTES as u64 == PAGE_BYTES_U64, "one size, two types");
