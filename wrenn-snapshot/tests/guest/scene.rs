//! A guest, its memory and the server of it, for tests of what a guest does to its memory.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wrenn_snapshot::{
    ByteSource, DirtyTracker, Features, Granule, PageIndex, PageRange, PageRun, PageServer, PageSource, ServeOptions,
    Tracking,
};

use super::{
    Backing, Guest, checksum,
    serving::{Gate, Gated, Serving},
};

/// A guest whose memory was granules of `n + 1`, on one kind of memory.
pub(crate) struct Scene {
    pub(crate) guest: Guest,
    pub(crate) uffd: OwnedFd,
    pub(crate) tracking: Tracking,
    /// There from the start with asynchronous tracking, and from the server on with synchronous.
    pub(crate) tracker: Option<DirtyTracker>,
    pub(crate) memory: Vec<u8>,
    pub(crate) granules: u32,
    pub(crate) granule: Granule,
}

impl Scene {
    /// Runs a test with each way of tracking, on every kind of memory that the machine has. `features` are asked for beside
    /// those that the way takes.
    pub(crate) fn each(name: &str, features: Features, mut test: impl FnMut(Self)) {
        let ways = [(Tracking::Async, Features::SERVE_AND_TRACK), (Tracking::Sync, Features::SERVE_AND_TRACK_SYNC)];
        for (backing, (tracking, takes)) in
            Backing::SERVED.into_iter().flat_map(|backing| ways.map(|way| (backing, way)))
        {
            let (granules, features) = (granules_of(backing), takes.with(features));
            let Some((guest, uffd, tracker)) = Guest::armed_on(name, backing, granules, features) else { continue };
            let (tracker, memory) = ((tracking == Tracking::Async).then_some(tracker), pattern(backing));
            test(Self { guest, uffd, tracking, tracker, memory, granules, granule: backing.granule() });
        }
    }

    /// A server of the scene's memory, which tracks in the scene's way.
    pub(crate) fn server(&mut self, source: Box<dyn PageSource>, options: ServeOptions) -> PageServer {
        let options = ServeOptions { tracking: self.tracking, ..options };
        let server = PageServer::new(self.uffd(), vec![self.guest.region], source, options).expect("it fits");
        if self.tracking == Tracking::Sync {
            self.tracker = Some(server.tracker(None).expect("it is told of writes"));
        }
        server
    }

    pub(crate) fn bytes(&self) -> Box<dyn PageSource> {
        Box::new(ByteSource::new(self.memory.clone()).expect("whole pages"))
    }

    /// What a granule was.
    pub(crate) fn was(&self, at: u32) -> &[u8] {
        let len = usize::try_from(self.granule.bytes()).expect("it fits");
        &self.memory[at as usize * len..][..len]
    }

    pub(crate) fn was_written(&self, at: u32, value: u8) -> u64 {
        let mut bytes = self.was(at).to_vec();
        bytes[0] = value;
        checksum(&bytes)
    }

    pub(crate) fn zeros(&self) -> u64 {
        checksum(&vec![0; usize::try_from(self.granule.bytes()).expect("it fits")])
    }

    /// The pages of so many granules.
    pub(crate) fn pages(&self, at: u32, count: u32) -> PageRange {
        PageRange::new(at * self.granule.pages(), count * self.granule.pages())
    }

    pub(crate) fn serve(&mut self, options: ServeOptions) -> Serving {
        let source = self.bytes();
        Serving::start(self.server(source, options))
    }

    /// Serves from a source that waits for a gate at a granule.
    pub(crate) fn serve_gated(&mut self, at: u32) -> (Serving, Arc<Gate>) {
        let (source, gate) = Gated::new(self.memory.clone(), self.pages(at, 1));
        let options = ServeOptions { watch: Some(self.guest.pidfd()), ..alone() };
        (Serving::start(self.server(Box::new(source), options)), gate)
    }

    /// Waits for so many things that were begun.
    pub(crate) fn finish(&mut self, count: u32) {
        for _ in 0..count {
            self.guest.finish();
        }
    }

    pub(crate) fn uffd(&self) -> OwnedFd {
        self.uffd.try_clone().expect("a copy")
    }

    /// Waits until the kernel has something to say.
    pub(crate) fn wait_for_event(&self) {
        let mut fds = [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)), Ok(1), "an event comes");
    }

    pub(crate) fn dirty(&mut self) -> Vec<PageRange> {
        let tracker = self.tracker.as_mut().expect("it is served");
        tracker.collect().expect("collected");
        tracker.pending()
    }
}

pub(crate) fn granules_of(backing: Backing) -> u32 {
    match backing.granule() {
        Granule::Kib4 => 64,
        Granule::Mib2 => 8,
    }
}

pub(crate) fn pattern(backing: Backing) -> Vec<u8> {
    let len = usize::try_from(backing.granule().bytes()).expect("it fits");
    (1..=granules_of(backing)).flat_map(|granule| vec![u8::try_from(granule).expect("a byte"); len]).collect()
}

/// No window around a fault.
pub(crate) fn alone() -> ServeOptions {
    ServeOptions { fault_around_bytes: 0, ..ServeOptions::default() }
}

/// A source that tells by its end that nobody has it any more.
pub(crate) struct Watched {
    pages: Box<dyn PageSource>,
    _alive: Arc<()>,
}

impl Watched {
    pub(crate) fn over(pages: Box<dyn PageSource>) -> (Box<dyn PageSource>, Weak<()>) {
        let alive = Arc::new(());
        let is_read = Arc::downgrade(&alive);
        (Box::new(Self { pages, _alive: alive }), is_read)
    }
}

/// Whoever is told too early that it is gone finds it there.
impl Drop for Watched {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl PageSource for Watched {
    fn page_count(&self) -> u32 {
        self.pages.page_count()
    }

    fn run<'a>(
        &'a self,
        first: PageIndex,
        pages_max: u32,
        scratch: &'a mut [u8],
    ) -> wrenn_snapshot::Result<PageRun<'a>> {
        self.pages.run(first, pages_max, scratch)
    }
}
