//! The page server: fills a restored guest's memory as the guest touches it.
//!
//! ```text
//! PageServer::new ─► serve ─► wait ─► drain every event ─► FaultQueue ─► act ─────┐
//!                              ▲                  │ none                          │
//!                              │                  └─► step: one chunk of the ─────┤
//!                              │                      background, if any is left  │
//!                              └─── deferred: wait for 1 ms at most ◄─────────────┘
//!                              └─ stop, death of the VMM, all resident, error ─► ServeEnd, with the descriptor
//! ```
//!
//! A thread of the guest that waits for a page waits for ever if nobody serves it, and sees zeros if the last copy of
//! the descriptor is closed. So whatever ends [`PageServer::serve`] hands the descriptor back, and the caller kills
//! the VMM before dropping it.
//!
//! # Background
//! Prefetch and population share the server's thread. They get a chunk when no event waits, and prefetch a smaller one
//! after each batch of faults too, so a fault waits behind one chunk at most. That matters while the working set is
//! read, which is some tens of milliseconds, and for faults outside of it, which are few: each takes some 55 us then
//! instead of 13, and 160 at the 99th percentile.
//!
//! With a second thread that copies, they take some 25 us (benches/prefetch.rs has both). But a page that is discarded
//! between its being read and its being copied must not come back, so either thread would have to wait for the other's
//! copy before it may read an event. That is the same wait, and a lock.
//!
//! # Detaching
//! Once every page is in place no fault is left to serve, and [`OnceResident::End`](crate::OnceResident) ends the
//! server. The descriptor stays open, though: asynchronous write protection belongs to a registered range, and closing
//! the last copy of its descriptor unregisters it, after which a scan finds nothing. Holding it costs nothing.
//!
//! A server that has to go on, since it is told of writes or of discards, lets go of its source then.

use std::{
    fs::File,
    os::fd::AsFd,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    affinity::{self, Companion},
    background::{self, Background, Chunk},
    counters::{Origin, RestoreReport, ServeCounters},
    dirty::{DirtyTracker, told::Told},
    error::{Error, Result},
    fill::{Filler, Filling, pages_at_once},
    options::{OnceResident, Populate, ServeOptions, Tracking},
    page::{PageIndex, PageRange},
    page_log::PageLog,
    queue::{Action, FaultQueue},
    region::{Region, Regions},
    resident::{Progress, Residence, ResidentPages},
    source::PageSource,
    stop::StopHandle,
    sys::uffd::{Access, Event, Features, Uffd},
    touched::TouchedPages,
};

/// How a page server ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct ServeEnd {
    /// Why.
    pub reason: EndReason,
    /// The userfaultfd. Kill the VMM before dropping it: a guest that waits for a page would be given zeros, and one
    /// whose pages are all in place would no longer be tracked.
    pub uffd: Uffd,
}

/// Why a page server ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum EndReason {
    /// It was told to.
    Stopped,
    /// The VMM is gone.
    PeerGone,
    /// Every page is in place, and [`OnceResident::End`] was asked for. The guest runs on without a server. Keep the
    /// descriptor for as long as what the guest writes has to be known.
    AllResident,
    /// A page could not be served. A thread of the guest may be waiting for it: kill the VMM.
    Failed(Error),
}

/// Serves the memory of one guest, on the thread that calls it.
pub struct PageServer {
    regions: Regions,
    options: ServeOptions,
    filler: Filler,
    background: Background,
    /// When the next chunk of the background is due.
    background_at: Option<Instant>,
    once_resident: Then,
    companion: Companion,
}

/// What is left to do once every page is in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// To end.
    Detach,
    /// To let go of the source.
    LetGo,
    Nothing,
}

impl std::fmt::Debug for PageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageServer").field("regions", &self.regions).finish_non_exhaustive()
    }
}

impl PageServer {
    /// Prepares to serve `regions`, which are [armed](crate::arm) or [adopted](crate::adopt) on `uffd`, from `source`.
    ///
    /// # Errors
    /// The regions are not whole granules, overlap, or reach past the source; an option is out of range; or the
    /// descriptor cannot track what the guest writes in the way that is asked for.
    pub fn new(
        uffd: impl Into<Uffd>,
        regions: Vec<Region>,
        source: Box<dyn PageSource>,
        options: ServeOptions,
    ) -> Result<Self> {
        let regions = Regions::new(regions)?;
        if regions.page_end() > u64::from(source.page_count()) {
            return Err(Error::invalid("a region reaches past the source"));
        }
        options.check()?;
        let uffd = uffd.into();
        let features = Features::of(uffd.as_fd())?;
        options.tracking.check(features)?;
        let is_needed = features.is_some_and(Features::report_changes) || options.tracking == Tracking::Sync;
        let once_resident = match (options.once_resident, is_needed) {
            (OnceResident::Serve, _) => Then::Nothing,
            (OnceResident::End, true) => Then::LetGo,
            (OnceResident::End, false) => Then::Detach,
        };
        let resident = ResidentPages::new(uffd.non_blocking()?, &regions, &options, pages_at_once(&regions));
        let filler = Filler::new(source, resident, &regions);
        let background = Background::new(&options, &regions);
        let companion = Companion::new(options.affinity);
        Ok(Self { companion, regions, options, filler, background, background_at: None, once_resident })
    }

    /// The live counts.
    #[must_use]
    pub fn counters(&self) -> Arc<ServeCounters> {
        Arc::clone(&self.filler.resident.counters)
    }

    /// The pages that the guest discards, if the descriptor was armed with [`Features::EVENT_REMOVE`]. They are zeros,
    /// and no scan reports them: mark them in the [tracker](crate::DirtyTracker::mark).
    #[must_use]
    pub fn removed_pages(&self) -> Arc<PageLog> {
        Arc::clone(&self.filler.resident.removed_log)
    }

    /// The tracker of what the guest writes, with [`Tracking::Sync`]. `file` is the memory where it is a file that has
    /// these regions at their offsets: only then can pages be [held](DirtyTracker::hold). It is told of each first write
    /// for as long as the server serves.
    ///
    /// # Errors
    /// The writes are tracked in another way, or no descriptor is free.
    pub fn tracker(&self, file: Option<File>) -> Result<DirtyTracker> {
        if self.options.tracking != Tracking::Sync {
            return Err(Error::invalid("the server is not told of what the guest writes"));
        }
        let resident = &self.filler.resident;
        let uffd = resident.uffd.as_fd().try_clone_to_owned().map_err(|error| Error::kernel("dup", error))?;
        Ok(DirtyTracker::told(Told::new(Arc::clone(&resident.written), uffd, self.regions.clone(), file)))
    }

    /// The pages that the guest touches, up to [`ServeOptions::record_pages_max`].
    #[must_use]
    pub fn touched_pages(&self) -> Arc<TouchedPages> {
        Arc::clone(&self.filler.resident.touched)
    }

    /// Puts every page in place at once, unwritten, before the guest runs. What a lazy restore is compared with.
    ///
    /// # Errors
    /// A page cannot be read, or the VMM is gone.
    pub fn populate_all(&mut self) -> Result<RestoreReport> {
        for region in self.regions.iter() {
            let pages_max = POPULATE_PAGES.max(region.granule.pages());
            let mut rest = region.pages();
            while let Some(absent) = self.filler.resident.first_absent(rest) {
                rest = PageRange::new(absent.start.0, rest.count - (absent.start.0 - rest.start.0));
                let pages = PageRange { count: absent.count.min(pages_max), ..absent };
                let what = Filling { region, pages, written: None, origin: Origin::Population };
                match self.filler.fill(&what)? {
                    Progress::Done => rest = after(rest, pages),
                    Progress::Again => std::thread::yield_now(),
                    Progress::Gone => return Err(Error::kernel("UFFDIO_COPY", Errno::ESRCH)),
                }
            }
        }
        Ok(self.filler.resident.counters.report())
    }

    /// Serves until it is stopped, the VMM dies, or a page cannot be served; or, if that is asked for, until every page
    /// is in place. Blocks the calling thread, which needs no other: it never waits for anything but the descriptors
    /// and the source. A panic of the source is an [`EndReason::Failed`], too.
    #[must_use = "the VMM has to be dealt with before the descriptor is dropped"]
    pub fn serve(mut self, stop: &StopHandle) -> ServeEnd {
        // A panic that went on would drop the descriptor, and whoever waits for a page would be given zeros.
        let served = std::panic::catch_unwind(AssertUnwindSafe(|| self.serve_until_end(stop)));
        let reason = served.unwrap_or_else(|panic| Err(Error::panicked(&*panic))).unwrap_or_else(EndReason::Failed);
        ServeEnd { reason, uffd: self.filler.resident.uffd }
    }

    fn serve_until_end(&mut self, stop: &StopHandle) -> Result<EndReason> {
        let mut queue = FaultQueue::default();
        let mut events = Vec::new();
        loop {
            if let Some(reason) = self.wait(stop, self.patience(&queue))? {
                return Ok(reason);
            }
            self.filler.resident.uffd.drain(&mut events)?;
            let read_at = Instant::now();
            // What reads ahead on the processor of the thread that waits would keep it waiting.
            if self.background.is_done() {
                self.companion.told(&events, read_at);
            }
            let is_idle = events.is_empty() && !queue.has_deferred();
            events.drain(..).for_each(|event| queue.push(self.of_granule(event)));
            queue.retry_deferred();
            while let Some(action) = queue.next() {
                match self.act(action)? {
                    Progress::Done => {}
                    Progress::Again => {
                        self.filler.resident.counters.count_deferred();
                        queue.defer(action);
                        continue;
                    }
                    Progress::Gone => return Ok(EndReason::PeerGone),
                }
                if matches!(action, Action::Install { .. }) {
                    self.filler.resident.counters.count_fault(read_at.elapsed());
                }
                if stop.is_stopped() {
                    return Ok(EndReason::Stopped);
                }
            }
            if is_idle && self.filler.resident.is_complete() {
                match std::mem::replace(&mut self.once_resident, Then::Nothing) {
                    Then::Detach => {
                        self.filler.let_go();
                        return Ok(EndReason::AllResident);
                    }
                    Then::LetGo => self.filler.let_go(),
                    Then::Nothing => {}
                }
            }
            let pages_max = match (is_idle, self.background.is_prefetching()) {
                (true, _) => background::CHUNK_PAGES,
                // A guest that faults as fast as it is served leaves no idle moment. Reading a little ahead after each
                // fault makes the next one wait, and many others never happen.
                (false, true) if !queue.has_deferred() => background::CHUNK_PAGES_BETWEEN_FAULTS,
                (false, _) => continue,
            };
            if self.step(stop, pages_max)? == Progress::Gone {
                return Ok(EndReason::PeerGone);
            }
        }
    }

    /// How long to wait for an event.
    fn patience(&self, queue: &FaultQueue) -> PollTimeout {
        let patience = self.patience_with_work(queue);
        match self.companion.is_bound() {
            true if patience.is_none() => PollTimeout::from(affinity::GAP_MS),
            true => patience.min(PollTimeout::from(affinity::GAP_MS)),
            false => patience,
        }
    }

    fn patience_with_work(&self, queue: &FaultQueue) -> PollTimeout {
        let until_background = || {
            let left = self.background_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            // Rounded up, so that it is due when the wait ends.
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        };
        match (queue.has_deferred(), self.background.is_done()) {
            (true, _) => PollTimeout::from(RETRY_AFTER_MS),
            (false, false) if self.background_at.is_none() => PollTimeout::ZERO,
            (false, false) => until_background(),
            // Nothing is left to do, and perhaps all is done.
            (false, true) if self.once_resident != Then::Nothing && self.filler.resident.is_complete() => {
                PollTimeout::ZERO
            }
            (false, true) => PollTimeout::NONE,
        }
    }

    /// Waits for an event. An answer means that there is nothing left to serve.
    fn wait(&self, stop: &StopHandle, timeout: PollTimeout) -> Result<Option<EndReason>> {
        let watch = self.options.watch.as_ref();
        // Always three, so that nothing is allocated for each fault.
        let mut fds =
            [self.filler.resident.uffd.as_fd(), stop.as_fd(), watch.map_or_else(|| stop.as_fd(), AsFd::as_fd)]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::kernel("poll", errno)),
        }
        if stop.is_stopped() {
            return Ok(Some(EndReason::Stopped));
        }
        let broken = fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
        let died = watch.is_some() && fds[2].revents().is_some_and(|events| !events.is_empty());
        Ok((broken || died).then_some(EndReason::PeerGone))
    }

    /// Rounds an event's address down to where its granule starts.
    fn of_granule(&self, event: Event) -> Event {
        match event {
            Event::Missing { addr, access, thread } => {
                Event::Missing { addr: self.regions.granule_start(addr), access, thread }
            }
            Event::Protected { addr } => Event::Protected { addr: self.regions.granule_start(addr) },
            Event::Removed { .. } | Event::Other => event,
        }
    }

    fn act(&mut self, action: Action) -> Result<Progress> {
        match action {
            Action::Remove { start, end } => {
                self.remove(start, end);
                Ok(Progress::Done)
            }
            Action::Unprotect { addr } => {
                let region = self.region_of(addr)?;
                self.filler.resident.unprotect(&region, region.page_at(addr))
            }
            Action::Install { addr, access } => self.serve_fault(addr, access),
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        for region in self.regions.iter() {
            let (from, to) = (start.max(region.host_addr), end.min(region.host_end()));
            if from < to {
                let first = region.page_at(from);
                let pages = PageRange { start: first, count: region.page_at(to).0 - first.0 };
                self.filler.resident.remove(region, pages);
            }
        }
    }

    fn region_of(&self, addr: u64) -> Result<Region> {
        let region = self.regions.containing(addr).copied();
        region.ok_or_else(|| Error::invalid(format!("a fault at {addr:#x}, which is in no region")))
    }

    fn serve_fault(&mut self, addr: u64, access: Access) -> Result<Progress> {
        let region = &self.region_of(addr)?;
        let page = region.page_at(addr);
        let alone = region.granule_of(page);
        if self.filler.resident.residence(page) != Residence::Absent {
            // It was there and is missing again, so it was discarded. Or two threads faulted at once and this is the
            // second event, in which case the page stays as it is.
            return self.filler.fill_discarded(region, alone);
        }
        let written = (access == Access::Write).then_some(page);
        let window = self.filler.resident.absent_around(alone, self.window_of(page, region));
        let filling = |pages| Filling { region, pages, written, origin: Origin::Fault };
        let mut result = self.filler.fill(&filling(window));
        let mut attempt = 1;
        while let Err(error) = &result {
            // Neighbours are a favour: what is wrong with one of them must not fail this page.
            let spoilt_by_neighbour = attempt == 1 && window != alone;
            if !spoilt_by_neighbour && (attempt >= self.options.read_attempts_max || !error.is_retryable()) {
                break;
            }
            attempt += 1;
            result = self.filler.fill(&filling(alone));
        }
        result
    }

    /// The aligned window around a page, cut to its region: a granule at least.
    fn window_of(&self, page: PageIndex, region: &Region) -> PageRange {
        let pages = self.options.fault_around_pages().max(region.granule.pages());
        let bounds = region.pages();
        let start = page.0 - page.0 % pages;
        let end = (u64::from(start) + u64::from(pages)).min(bounds.end());
        let start = start.max(bounds.start.0);
        PageRange::new(start, u32::try_from(end).unwrap_or(u32::MAX) - start)
    }

    /// Puts the next pages of the background in place, if they are due: a chunk in all.
    fn step(&mut self, stop: &StopHandle, pages_max: u32) -> Result<Progress> {
        if stop.is_background_stopped() {
            self.background.cancel();
        }
        let now = Instant::now();
        if self.background_at.is_some_and(|at| now < at) {
            return Ok(Progress::Done);
        }
        self.background_at = None;
        let mut room = pages_max;
        while room > 0 {
            let resident = &self.filler.resident;
            let step = self.background.next(room, |pages| resident.first_absent(pages));
            resident.counters.count_prefetch_late(step.late.into());
            let Some(chunk) = step.chunk else { break };
            let Chunk { region, pages, origin } = chunk;
            match self.filler.fill(&Filling { region: &region, pages, written: None, origin }) {
                Ok(Progress::Done) => {}
                Ok(Progress::Again) => {
                    self.background_at = Some(now + Duration::from_millis(RETRY_AFTER_MS.into()));
                    return Ok(Progress::Again);
                }
                Ok(Progress::Gone) => return Ok(Progress::Gone),
                // Reading ahead is a favour. If a page is touched that cannot be read, its fault says so.
                Err(_) => self.filler.resident.counters.count_background_failure(),
            }
            self.background.passed(&chunk);
            room = room.saturating_sub(pages.count);
            if let (Origin::Population, Populate::InBackground { bytes_per_second }) = (origin, self.options.populate) {
                self.background_at = Some(now + time_for(pages, bytes_per_second));
                break;
            }
        }
        Ok(Progress::Done)
    }
}

/// What is left of some pages after those at their start.
fn after(pages: PageRange, passed: PageRange) -> PageRange {
    let skipped = passed.start.0 + passed.count - pages.start.0;
    PageRange::new(pages.start.0 + skipped, pages.count - skipped)
}

/// How long so many pages take at a rate.
fn time_for(pages: PageRange, bytes_per_second: u64) -> Duration {
    let bytes = PageIndex(pages.count).byte_offset();
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / bytes_per_second)
}

/// 256 KiB: what is read, checked and copied stays in a processor's cache.
const POPULATE_PAGES: u32 = 64;

/// How long a page that the kernel put off waits at most.
const RETRY_AFTER_MS: u8 = 1;

#[cfg(test)]
mod tests;
