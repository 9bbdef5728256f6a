//! Keeping what pages held at one instant until it is copied, while the guest goes on and writes to them.
//!
//! ```text
//!  asynchronous descriptor ── runs of wanted pages ──► synchronous descriptor       (the guest is stopped)
//!            ▲                                              │ a write waits
//!            │ at the next hold                             ▼
//!            └────────────────────────────── Keeper::keep, then unprotect           (the guest runs)
//! ```
//!
//! Asynchronous protection, which is how written pages are found, tells nobody of a write before it happens, and a
//! descriptor protects in one way for its life. So the VMM has two, and memory is moved from one to the other: by runs, since
//! to move all of it takes 30 ms for each 512 MiB, and a mapping that is split in some hundred costs nothing that can be measured.
//! Moved memory is registered for writes alone, so only pages that are in place may be moved: the page server goes on
//! with the first descriptor, and knows nothing of this.
//!
//! What was moved stays so until the next hold, for which the guest is stopped anyway; moving it back while the guest
//! runs would miss what it writes between the two calls. Meanwhile the first write to such a page waits for the thread
//! here, some 10 us; one that comes in order lets more and more of what follows through too, up to 64 KiB. Without that, a
//! guest that rewrites 64 MiB took 0.8 s for the first time after a fork; with it, 20 to 60 ms, and 14 without a fork.

pub(crate) mod held;
pub(crate) mod in_order;
pub(crate) mod keeper;
#[cfg(test)]
mod model;
pub(crate) mod plan;
mod sync;
#[cfg(test)]
mod tests;
mod writes;

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, PoisonError, Weak},
};

use crate::{
    error::{Error, Result},
    hold::{
        held::HeldPages,
        in_order::InOrder,
        plan::Plan,
        writes::{Current, Writes},
    },
    memory_file::MemoryFile,
    page::{PageIndex, PageRange},
    region::{Granule, Region, Regions},
    stop::StopHandle,
    sys::uffd::{self, Features, Uffd, Watched},
};

/// The two descriptors, and what is moved to the second one. Dropping it lets every write through.
#[derive(Debug)]
pub(crate) struct Hold {
    asynchronous: OwnedFd,
    synchronous: Arc<Uffd>,
    regions: Regions,
    /// What the asynchronous descriptor watches for.
    watched: Watched,
    /// Moved: sorted, and apart.
    runs: Vec<PageRange>,
    current: Current,
    /// Whether what was held last is still wanted.
    alive: Weak<()>,
    /// Ends the thread, once that is there.
    stop: Option<StopHandle>,
}

impl Hold {
    /// `synchronous` is new, and of the same process as `asynchronous`, on which `regions` are registered for what is
    /// `watched`.
    pub(crate) fn new(asynchronous: OwnedFd, synchronous: Uffd, regions: Regions, watched: Watched) -> Result<Self> {
        if regions.iter().any(|region| region.granule != Granule::Kib4) {
            return Err(Error::invalid("only memory of 4 KiB pages can be held"));
        }
        uffd::handshake(synchronous.as_fd(), Features::HOLD)?;
        let synchronous = Arc::new(synchronous.non_blocking()?);
        Ok(Self {
            asynchronous,
            synchronous,
            regions,
            watched,
            runs: Vec::new(),
            current: Current::default(),
            alive: Weak::new(),
            stop: None,
        })
    }

    /// Starts the thread with the first hold: most VMs never have one.
    fn serve(&mut self) -> Result<()> {
        let stop = StopHandle::new()?;
        let work = Writes {
            uffd: Arc::clone(&self.synchronous),
            regions: self.regions.clone(),
            current: Arc::clone(&self.current),
            stop: stop.clone(),
            order: InOrder::default(),
        };
        let thread = std::thread::Builder::new().name("wrenn-hold".to_owned());
        thread.spawn(move || work.serve()).map_err(|error| Error::kernel("clone", error))?;
        self.stop = Some(stop);
        Ok(())
    }

    /// The pages that [`hold`](Self::hold) moves from one descriptor to the other: the marks of what was written there are
    /// lost.
    pub(crate) fn moved_by(&self, plan: &Plan) -> Vec<PageRange> {
        self.runs.iter().chain(&plan.runs).copied().collect()
    }

    /// Holds pages as planned. The guest is stopped, and nothing [is wanted](Self::is_wanted). After an error, protection is
    /// as it may be.
    pub(crate) fn hold(&mut self, plan: Plan, memory: MemoryFile) -> Result<HeldPages> {
        if self.stop.is_none() {
            self.serve()?;
        }
        let space_pages = u32::try_from(self.regions.page_end()).unwrap_or(u32::MAX);
        let held = HeldPages::of_memory(&plan.held, memory, space_pages);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        for run in std::mem::take(&mut self.runs) {
            self.move_run(run, self.synchronous.as_fd(), self.asynchronous.as_fd(), self.watched)?;
        }
        *current = Arc::downgrade(&held.keeper);
        for run in &plan.runs {
            self.move_run(*run, self.asynchronous.as_fd(), self.synchronous.as_fd(), Watched::Writes)?;
        }
        drop(current);
        self.runs = plan.runs;
        self.alive = Arc::downgrade(&held.alive);
        Ok(held)
    }

    /// Whether somebody has pages that are held.
    pub(crate) fn is_wanted(&self) -> bool {
        self.alive.strong_count() > 0
    }

    /// Protects pages of moved runs again.
    pub(crate) fn protect(&self, region: &Region, pages: PageRange) -> Result<()> {
        uffd::protect(self.synchronous.as_fd(), region.addr_of(pages.start), PageIndex(pages.count).byte_offset())
    }

    /// The pieces of some pages, in order, and whether they are moved.
    pub(crate) fn split(&self, pages: PageRange) -> Vec<(PageRange, bool)> {
        let mut split = Vec::new();
        let (mut next, end) = (pages.start.0, pages.start.0 + pages.count);
        let first = self.runs.partition_point(|run| run.end() <= u64::from(next));
        for run in self.runs[first..].iter().take_while(|run| run.start.0 < end) {
            let (from, to) = (run.start.0.max(next), (run.start.0 + run.count).min(end));
            split.extend((from > next).then(|| (PageRange::new(next, from - next), false)));
            split.push((PageRange::new(from, to - from), true));
            next = to;
        }
        split.extend((end > next).then(|| (PageRange::new(next, end - next), false)));
        split
    }

    /// Moves a run from one descriptor to another, which protects it.
    fn move_run(&self, run: PageRange, from: BorrowedFd<'_>, to: BorrowedFd<'_>, watched: Watched) -> Result<()> {
        for (region, pages) in self.regions.pieces_of(run) {
            let (addr, len) = (region.addr_of(pages.start), PageIndex(pages.count).byte_offset());
            uffd::unregister(from, addr, len)?;
            uffd::register(to, addr, len, watched)?;
            uffd::protect(to, addr, len)?;
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.stop.iter().for_each(StopHandle::stop);
    }
}
