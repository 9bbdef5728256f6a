//! The page server: fills a restored guest's memory as the guest touches it.
//!
//! ```text
//! PageServer::new ─► serve ─► poll ─► drain every event ─► FaultQueue ─► act ─┐
//!                              ▲                                             │
//!                              └─── deferred: poll for 1 ms at most ◄────────┘
//!                              └─ stop, death of the VMM, error ─► ServeEnd, with the descriptor
//! ```
//!
//! A thread of the guest that waits for a page waits for ever if nobody serves it, and sees zeros if the last copy of
//! the descriptor is closed. So whatever ends [`PageServer::serve`] hands the descriptor back, and the caller kills
//! the VMM before dropping it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    counters::{RestoreReport, ServeCounters},
    error::{Error, Result},
    page::{PAGE_BYTES, PAGE_BYTES_U64, PageIndex, PageRange, bytes_of},
    queue::{Action, FaultQueue},
    region::{Region, Regions},
    resident::{Progress, RemovedPages, Residence, ResidentPages},
    source::{PageRun, PageSource},
    sys::uffd::{Access, Copied, Uffd},
};

/// How a page server works.
#[derive(Debug)]
pub struct ServeOptions {
    /// How much to put in place around a page that is touched, in bytes, aligned to itself; at most 1 MiB. 64 KiB by
    /// default. More makes a restore that touches its memory in order faster, and uses more memory.
    pub fault_around_bytes: u32,
    /// How often a page is read before the server gives up, at least 1. 3 by default. Damage is not tried again.
    pub read_attempts_max: u32,
    /// A descriptor that becomes readable when the VMM dies, such as its pidfd. None by default; without one, the
    /// death of the VMM goes unnoticed until the server is stopped.
    pub watch: Option<OwnedFd>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { fault_around_bytes: 64 << 10, read_attempts_max: 3, watch: None }
    }
}

/// Ends a page server from anywhere, at any time, also before it serves. Clones stop the same server.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<Stop>);

#[derive(Debug)]
struct Stop {
    event: EventFd,
    stopped: AtomicBool,
}

impl StopHandle {
    /// A handle that nobody has used yet.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn new() -> Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::kernel("eventfd", errno))?;
        Ok(Self(Arc::new(Stop { event, stopped: AtomicBool::new(false) })))
    }

    /// Ends the server within milliseconds. It stays ended.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        // The only failure is a full counter, and that is readable too.
        let _ = self.0.event.write(1);
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }
}

/// How a page server ended.
#[derive(Debug)]
pub struct ServeEnd {
    /// Why.
    pub reason: EndReason,
    /// The userfaultfd. Kill the VMM before dropping it, unless every page is in place: a guest that waits for a page
    /// would be given zeros.
    pub uffd: OwnedFd,
}

/// Why a page server ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum EndReason {
    /// It was told to.
    Stopped,
    /// The VMM is gone.
    PeerGone,
    /// A page could not be served. A thread of the guest may be waiting for it: kill the VMM.
    Failed(Error),
}

/// Serves the memory of one guest, on the thread that calls it.
pub struct PageServer {
    regions: Regions,
    source: Box<dyn PageSource>,
    options: ServeOptions,
    resident: ResidentPages,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for PageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageServer").field("regions", &self.regions).finish_non_exhaustive()
    }
}

impl PageServer {
    /// Prepares to serve `regions`, which are [armed](crate::arm) on `uffd`, from `source`.
    ///
    /// # Errors
    /// The regions are not whole pages, overlap, or reach past the source; or an option is out of range.
    pub fn new(
        uffd: OwnedFd,
        regions: Vec<Region>,
        source: Box<dyn PageSource>,
        options: ServeOptions,
    ) -> Result<Self> {
        let regions = Regions::new(regions)?;
        if regions.page_end() > u64::from(source.page_count()) {
            return Err(Error::invalid("a region reaches past the source"));
        }
        if options.fault_around_bytes > bytes_max() || options.read_attempts_max == 0 {
            return Err(Error::invalid("a page server's option is out of range"));
        }
        let resident = ResidentPages::new(Uffd::new(uffd)?, &regions, CHUNK_PAGES);
        Ok(Self { regions, source, options, resident, scratch: vec![0; bytes_of(CHUNK_PAGES)] })
    }

    /// The live counts.
    #[must_use]
    pub fn counters(&self) -> Arc<ServeCounters> {
        Arc::clone(&self.resident.counters)
    }

    /// The pages that the guest discards, if the descriptor was armed with
    /// [`Features::EVENT_REMOVE`](crate::Features::EVENT_REMOVE).
    #[must_use]
    pub fn removed_pages(&self) -> Arc<RemovedPages> {
        Arc::clone(&self.resident.removed_log)
    }

    /// Puts every page in place at once, write-protected, before the guest runs. What a lazy restore is compared with.
    ///
    /// # Errors
    /// A page cannot be read, or the VMM is gone.
    pub fn populate_all(&mut self) -> Result<RestoreReport> {
        let regions = self.regions.clone();
        for region in regions.iter() {
            let pages = region.pages();
            let mut page = pages.start.0;
            while u64::from(page) < pages.end() {
                let left = pages.start.0 + pages.count - page;
                let run = self.source.run(PageIndex(page), left.min(CHUNK_PAGES), &mut self.scratch)?;
                let count = run.pages();
                match self.resident.install(region, PageIndex(page), run, None)? {
                    Progress::Done => page += count,
                    Progress::Again => std::thread::yield_now(),
                    Progress::Gone => return Err(Error::kernel("UFFDIO_COPY", Errno::ESRCH)),
                }
            }
        }
        Ok(self.resident.counters.report())
    }

    /// Serves until it is stopped, the VMM dies, or a page cannot be served. Blocks the calling thread, which needs
    /// no other: it never waits for anything but the descriptors and the source.
    #[must_use = "the VMM has to be dealt with before the descriptor is dropped"]
    pub fn serve(mut self, stop: &StopHandle) -> ServeEnd {
        let reason = self.serve_until_end(stop).unwrap_or_else(EndReason::Failed);
        ServeEnd { reason, uffd: self.resident.uffd.into_fd() }
    }

    fn serve_until_end(&mut self, stop: &StopHandle) -> Result<EndReason> {
        let mut queue = FaultQueue::default();
        let mut events = Vec::new();
        loop {
            if let Some(reason) = self.wait(stop, queue.has_deferred())? {
                return Ok(reason);
            }
            self.resident.uffd.drain(&mut events)?;
            let read_at = Instant::now();
            events.drain(..).for_each(|event| queue.push(event));
            queue.retry_deferred();
            while let Some(action) = queue.next() {
                match self.act(action)? {
                    Progress::Done => {}
                    Progress::Again => {
                        self.resident.counters.count_deferred();
                        queue.defer(action);
                        continue;
                    }
                    Progress::Gone => return Ok(EndReason::PeerGone),
                }
                if matches!(action, Action::Install { .. }) {
                    self.resident.counters.count_fault(read_at.elapsed());
                }
                if stop.is_stopped() {
                    return Ok(EndReason::Stopped);
                }
            }
        }
    }

    /// Waits for an event. An answer means that there is nothing left to serve.
    fn wait(&self, stop: &StopHandle, has_deferred: bool) -> Result<Option<EndReason>> {
        let mut fds = vec![
            PollFd::new(self.resident.uffd.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.0.event.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(self.options.watch.iter().map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        let timeout = if has_deferred { PollTimeout::from(RETRY_AFTER_MS) } else { PollTimeout::NONE };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::kernel("poll", errno)),
        }
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        if stop.is_stopped() {
            return Ok(Some(EndReason::Stopped));
        }
        let broken = fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP));
        if broken || fds.get(2).is_some_and(ready) {
            return Ok(Some(EndReason::PeerGone));
        }
        Ok(None)
    }

    fn act(&mut self, action: Action) -> Result<Progress> {
        match action {
            Action::Remove { start, end } => {
                self.remove(start, end);
                Ok(Progress::Done)
            }
            Action::Unprotect { addr } => Ok(match self.resident.uffd.unprotect(addr, PAGE_BYTES_U64)? {
                Copied::Bytes(_) | Copied::Exists => Progress::Done,
                Copied::Again => Progress::Again,
                Copied::Gone => Progress::Gone,
            }),
            Action::Install { addr, access } => self.serve_fault(addr, access),
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        for region in self.regions.iter() {
            let (from, to) = (start.max(region.host_addr), end.min(region.host_end()));
            if from < to {
                let first = region.page_at(from);
                let pages = PageRange { start: first, count: region.page_at(to).0 - first.0 };
                self.resident.remove(region, pages);
            }
        }
    }

    fn serve_fault(&mut self, addr: u64, access: Access) -> Result<Progress> {
        let Some(region) = self.regions.containing(addr).copied() else {
            return Err(Error::invalid(format!("a fault at {addr:#x}, which is in no region")));
        };
        let page = region.page_at(addr);
        if self.resident.residence(page) != Residence::Absent {
            // It was there and is missing again, so it was discarded. Or two threads faulted at once and this is the
            // second event, in which case the page stays as it is. It counts as written: the parent has other bytes.
            return self.resident.install(&region, page, PageRun::Zero(1), Some(page));
        }
        let written = (access == Access::Write).then_some(page);
        let window = self.resident.absent_around(page, self.window_of(page, &region));
        let alone = PageRange { start: page, count: 1 };
        let mut result = self.fetch(&region, window, written);
        let mut attempt = 1;
        while let Err(error) = &result {
            // Neighbours are a favour: what is wrong with one of them must not fail this page.
            let spoilt_by_neighbour = attempt == 1 && window != alone;
            if !spoilt_by_neighbour && (attempt >= self.options.read_attempts_max || !error.is_retryable()) {
                break;
            }
            attempt += 1;
            result = self.fetch(&region, alone, written);
        }
        result
    }

    /// The aligned window around a page, cut to its region.
    fn window_of(&self, page: PageIndex, region: &Region) -> PageRange {
        let pages = (self.options.fault_around_bytes / PAGE_BYTES_U32).max(1);
        let bounds = region.pages();
        let start = page.0 - page.0 % pages;
        let end = (u64::from(start) + u64::from(pages)).min(bounds.end());
        let start = start.max(bounds.start.0);
        PageRange::new(start, u32::try_from(end).unwrap_or(u32::MAX) - start)
    }

    /// Reads pages and puts them in place, one run after another.
    fn fetch(&mut self, region: &Region, pages: PageRange, written: Option<PageIndex>) -> Result<Progress> {
        let mut page = pages.start.0;
        while u64::from(page) < pages.end() {
            let left = pages.start.0 + pages.count - page;
            let run = self.source.run(PageIndex(page), left, &mut self.scratch)?;
            let count = run.pages();
            let progress = self.resident.install(region, PageIndex(page), run, written)?;
            if progress != Progress::Done {
                return Ok(progress);
            }
            page += count;
        }
        Ok(Progress::Done)
    }
}

fn bytes_max() -> u32 {
    CHUNK_PAGES * PAGE_BYTES_U32
}

/// 1 MiB: what is read and installed at once.
const CHUNK_PAGES: u32 = 256;
const PAGE_BYTES_U32: u32 = 4096;
const _: () = assert!(PAGE_BYTES == PAGE_BYTES_U32 as usize, "one size, two types");

/// How long a page that the kernel put off waits at most.
const RETRY_AFTER_MS: u8 = 1;
