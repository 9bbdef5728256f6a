//! Which pages of a guest are in place, and putting them there.

use std::sync::{Arc, Mutex, PoisonError};

use bitvec::vec::BitVec;

use crate::{
    counters::ServeCounters,
    error::Result,
    page::{PAGE_BYTES, PAGE_BYTES_U64, PageIndex, PageRange, bytes_of},
    region::{Region, Regions},
    source::PageRun,
    sys::uffd::{Copied, Install, Uffd},
};

/// Pages that the guest discarded (`MADV_DONTNEED`, `MADV_REMOVE`). They are zeros, and no scan reports them.
#[derive(Debug, Default)]
pub struct RemovedPages(Mutex<Vec<PageRange>>);

impl RemovedPages {
    /// Takes what was discarded since the last call: mark it in the [tracker](crate::DirtyTracker::mark).
    #[must_use]
    pub fn take(&self) -> Vec<PageRange> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, range: PageRange) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(range);
    }
}

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

/// The pages of a guest that are in place.
#[derive(Debug)]
pub(crate) struct ResidentPages {
    pub(crate) uffd: Uffd,
    installed: BitVec,
    removed: BitVec,
    pub(crate) removed_log: Arc<RemovedPages>,
    pub(crate) counters: Arc<ServeCounters>,
    zeros: Vec<u8>,
}

impl ResidentPages {
    /// `pages_max` is the longest run that will be installed at once.
    pub(crate) fn new(uffd: Uffd, regions: &Regions, pages_max: u32) -> Self {
        let pages = usize::try_from(regions.page_end()).unwrap_or(usize::MAX);
        Self {
            uffd,
            installed: BitVec::repeat(false, pages),
            removed: BitVec::repeat(false, pages),
            removed_log: Arc::default(),
            counters: Arc::new(ServeCounters::new(regions.page_count())),
            zeros: vec![0; bytes_of(pages_max)],
        }
    }

    pub(crate) fn residence(&self, page: PageIndex) -> Residence {
        let page = page.0 as usize;
        match (self.removed[page], self.installed[page]) {
            (true, _) => Residence::Removed,
            (false, true) => Residence::Installed,
            (false, false) => Residence::Absent,
        }
    }

    /// The absent pages around `page`, inside `bounds`, without a gap.
    pub(crate) fn absent_around(&self, page: PageIndex, bounds: PageRange) -> PageRange {
        let absent = |page: &u32| self.residence(PageIndex(*page)) == Residence::Absent;
        let bounds_end = bounds.start.0 + bounds.count;
        let start = (bounds.start.0..page.0).rev().take_while(absent).last().unwrap_or(page.0);
        let end = (page.0 + 1..bounds_end).take_while(absent).last().map_or(page.0 + 1, |last| last + 1);
        PageRange::new(start, end - start)
    }

    /// The guest discarded pages.
    pub(crate) fn remove(&mut self, region: &Region, pages: PageRange) {
        debug_assert!(pages.end() <= region.pages().end(), "a discard is inside of its region");
        let range = pages.start.0 as usize..pages.start.0 as usize + pages.count as usize;
        self.removed[range.clone()].fill(true);
        self.installed[range].fill(false);
        self.removed_log.push(pages);
    }

    /// Puts a run of pages in place. `written` is the page of the run, if any, that a thread waits to write.
    pub(crate) fn install(
        &mut self,
        region: &Region,
        first: PageIndex,
        run: PageRun<'_>,
        written: Option<PageIndex>,
    ) -> Result<Progress> {
        let end = first.0 + run.pages();
        let Some(PageIndex(page)) = written.filter(|page| (first.0..end).contains(&page.0)) else {
            return self.install_piece(region, first.0, first.0, end, run, Install::Clean);
        };
        // The page that somebody waits for comes first. It alone is dirty.
        for (from, to, install) in
            [(page, page + 1, Install::Dirty), (first.0, page, Install::Clean), (page + 1, end, Install::Clean)]
        {
            let progress = self.install_piece(region, first.0, from, to, run, install)?;
            if progress != Progress::Done {
                return Ok(progress);
            }
        }
        Ok(Progress::Done)
    }

    /// Puts the pages `from..to` of a run that starts at `first` in place.
    fn install_piece(
        &mut self,
        region: &Region,
        first: u32,
        from: u32,
        to: u32,
        run: PageRun<'_>,
        install: Install,
    ) -> Result<Progress> {
        let mut page = from;
        while page < to {
            let bytes = match run {
                PageRun::Data(bytes) => &bytes[bytes_of(page - first)..bytes_of(to - first)],
                PageRun::Zero(_) => &self.zeros[..bytes_of(to - page).min(self.zeros.len())],
            };
            let addr = region.addr_of(PageIndex(page));
            let pages = match self.uffd.copy(addr, bytes, install)? {
                Copied::Bytes(len) => u32::try_from(len / PAGE_BYTES_U64).unwrap_or(0),
                Copied::Exists => {
                    self.uffd.wake(addr, PAGE_BYTES_U64)?;
                    self.set_installed(page, 1);
                    page += 1;
                    continue;
                }
                Copied::Again => 0,
                Copied::Gone => return Ok(Progress::Gone),
            };
            if pages == 0 {
                return Ok(Progress::Again);
            }
            self.set_installed(page, pages);
            match run {
                PageRun::Data(_) => self.counters.count_data(pages.into(), u64::from(pages) * PAGE_BYTES_U64),
                PageRun::Zero(_) => self.counters.count_zeros(pages.into()),
            }
            page += pages;
        }
        Ok(Progress::Done)
    }

    fn set_installed(&mut self, page: u32, pages: u32) {
        let range = page as usize..page as usize + pages as usize;
        self.installed[range.clone()].fill(true);
        self.removed[range].fill(false);
    }
}

const _: () = assert!(PAGE_BYTES as u64 == PAGE_BYTES_U64, "one size, two types");
