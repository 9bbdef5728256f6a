//! The thread that lets a guest write to pages that are held.

use std::{
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    hold::{held::Read, in_order::InOrder, keeper::Keeper},
    page::{PageIndex, PageRange},
    region::{Region, Regions},
    stop::StopHandle,
    sys::uffd::{Copied, Event, Uffd},
};

/// Whom the thread asks before it lets a write through. Locked from the asking to the letting through: an event may be
/// older than a hold, since a thread that waits is woken by another's write, and would undo its protection.
pub(crate) type Current = Arc<Mutex<Weak<Keeper<Read>>>>;

/// The thread that lets writes through.
pub(crate) struct Writes {
    pub(crate) uffd: Arc<Uffd>,
    pub(crate) regions: Regions,
    pub(crate) current: Current,
    pub(crate) stop: StopHandle,
    pub(crate) order: InOrder,
}

impl Writes {
    pub(crate) fn serve(mut self) {
        let mut events = Vec::new();
        while !self.stop.is_stopped() {
            if self.wait().is_err() || self.uffd.drain(&mut events).is_err() {
                // The kernel is out of memory. Whoever waits to write waits for this thread, so it may not end.
                std::thread::sleep(RETRY);
            }
            events.drain(..).for_each(|event| self.let_through(event));
        }
    }

    fn wait(&self) -> nix::Result<()> {
        let fds = [self.stop.as_fd(), self.uffd.as_fd()];
        match poll(&mut fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)), PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn let_through(&mut self, event: Event) {
        let Event::Protected { addr } = event else { return };
        let Some(region) = self.regions.containing(addr) else { return };
        let page = region.page_at(addr);
        let left = region.pages().start.0 + region.pages().count - page.0;
        let pages = PageRange::new(page.0, self.order.ahead(page.0, left));
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = current.upgrade() {
            keeper.keep(pages);
        }
        // Those that come next may not be moved.
        if self.unprotect(region, pages) == Copied::Unmapped && pages.count > 1 {
            self.unprotect(region, PageRange { count: 1, ..pages });
        }
    }

    fn unprotect(&self, region: &Region, pages: PageRange) -> Copied {
        loop {
            match self.uffd.unprotect(region.addr_of(pages.start), PageIndex(pages.count).byte_offset()) {
                // Nobody is told of changes on this descriptor, so no event has to be read first.
                Ok(Copied::Again) if !self.stop.is_stopped() => std::thread::yield_now(),
                Ok(done) => return done,
                // A page of the range is of no mapping that is registered.
                Err(_) => return Copied::Unmapped,
            }
        }
    }
}

const RETRY: Duration = Duration::from_millis(1);
