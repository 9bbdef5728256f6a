//! A guest: another process that maps memory, hands its userfaultfd over, and touches pages when it is told.

#![allow(dead_code, reason = "each test file uses a part of this")]
#![expect(unsafe_code, reason = "a mapping of shared memory, and a descriptor that arrives in a message")]

use std::{
    fs::File,
    io::{IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::FileExt,
            net::{UnixListener, UnixStream},
        },
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

pub(crate) use inside::run;
use memmap2::Mmap;
use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{ControlMessageOwned, MsgFlags, recvmsg},
    },
    unistd::Whence,
};
use wrenn_snapshot::{DirtyTracker, Features, Granule, MemoryFile, Region, arm, arm_file, arm_private, create_uffd};

mod huge;
mod inside;
pub(crate) mod scene;
pub(crate) mod serving;

/// What a guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Shared,
    Private,
    SharedHuge,
    PrivateHuge,
    /// A private mapping of a file that has all of it, each byte of it [`CLONED`].
    Clone,
}

/// What a clone has before it writes.
pub(crate) const CLONED: u8 = 3;

impl Backing {
    pub(crate) const SERVED: [Self; 4] = [Self::Shared, Self::Private, Self::SharedHuge, Self::PrivateHuge];

    pub(crate) fn granule(self) -> Granule {
        match self {
            Self::Shared | Self::Private | Self::Clone => Granule::Kib4,
            Self::SharedHuge | Self::PrivateHuge => Granule::Mib2,
        }
    }
}

/// In which order pages are touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Ascending,
    Shuffled,
}

/// Every page once, in an order without a pattern, which is the same in each run.
pub(crate) fn shuffled(pages: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pages).collect();
    let mut state = 1u64;
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let with = usize::try_from(state >> 33).expect("31 bits") % (at + 1);
        order.swap(at, with);
    }
    order
}

/// The other process, seen from the test. Dropping it kills it. What it is told is in granules of its memory.
pub(crate) struct Guest {
    child: Child,
    stream: UnixStream,
    /// Empty if the memory is private.
    pub(crate) memory: File,
    pub(crate) region: Region,
    /// Another descriptor, as new as the first.
    pub(crate) second: Option<OwnedFd>,
    _huge_pages: Option<huge::HugePages>,
}

impl Guest {
    /// Starts a guest of `pages` pages of shared memory, or says why the test is skipped.
    pub(crate) fn start(test: &str, pages: u32) -> Option<(Self, OwnedFd)> {
        Self::start_on(test, Backing::Shared, pages)
    }

    /// Starts a guest of `granules` granules, or says why the test is skipped.
    pub(crate) fn start_on(test: &str, backing: Backing, granules: u32) -> Option<(Self, OwnedFd)> {
        if let Err(error) = create_uffd() {
            skipped(test, backing, &error);
            return None;
        }
        let granule = backing.granule();
        let huge_pages = match granule {
            Granule::Kib4 => None,
            // One more, which the kernel takes for a moment when it cannot copy at once.
            Granule::Mib2 => match huge::HugePages::reserve(u64::from(granules) + 1) {
                Ok(pages) => Some(pages),
                Err(error) => {
                    skipped(test, backing, &error);
                    return None;
                }
            },
        };
        let len_bytes = u64::from(granules) * granule.bytes();
        let memory = memory(backing, len_bytes);
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("a socket");
        let child = Command::new(std::env::current_exe().expect("the test's own name"))
            .args(["--exact", "guest_process", "--ignored", "--nocapture"])
            .env("GUEST_SOCKET", dir.path().join("socket"))
            .env("GUEST_MEMORY", format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()))
            .env("GUEST_BACKING", format!("{backing:?}"))
            .env("GUEST_LEN", len_bytes.to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("the test runs itself");
        let (stream, _) = listener.accept().expect("the guest connects");
        // On an emulated processor that is busy, thousands of writes that wait take this long.
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket has time-outs");
        let ([uffd, second], host_addr) = receive(&stream);
        let region = Region { granule, ..Region::new(host_addr, len_bytes, 0) };
        Some((Self { child, stream, memory, region, second: Some(second), _huge_pages: huge_pages }, uffd))
    }

    /// Starts a guest whose whole memory is one armed region.
    pub(crate) fn armed(test: &str, pages: u32, features: Features) -> Option<(Self, OwnedFd, DirtyTracker)> {
        Self::armed_on(test, Backing::Shared, pages, features)
    }

    /// The same on other memory.
    pub(crate) fn armed_on(
        test: &str,
        backing: Backing,
        granules: u32,
        features: Features,
    ) -> Option<(Self, OwnedFd, DirtyTracker)> {
        let (guest, uffd) = Self::start_on(test, backing, granules)?;
        if let Err(error) = arm(uffd.as_fd(), &[guest.region], features) {
            skipped(test, backing, &error);
            return None;
        }
        let tracker = DirtyTracker::new(guest.pagemap(), vec![guest.region]).expect("the region is whole pages");
        Some((guest, uffd, tracker))
    }

    /// Starts a guest whose memory is tracked by the holes of its file.
    pub(crate) fn armed_file(test: &str, pages: u32, features: Features) -> Option<(Self, OwnedFd, DirtyTracker)> {
        let (guest, uffd) = Self::start_on(test, Backing::Shared, pages)?;
        if let Err(error) = arm_file(uffd.as_fd(), &[guest.region], features) {
            skipped(test, Backing::Shared, &error);
            return None;
        }
        let file = guest.memory.try_clone().expect("a descriptor is free");
        let tracker = DirtyTracker::of_file(guest.pagemap(), vec![guest.region], file);
        Some((guest, uffd, tracker.expect("the region is whole pages")))
    }

    /// Starts a guest that is a clone, or says why the test is skipped.
    pub(crate) fn armed_clone(test: &str, pages: u32) -> Option<(Self, OwnedFd, DirtyTracker)> {
        let (guest, uffd) = Self::start_on(test, Backing::Clone, pages)?;
        if let Err(error) = arm_private(uffd.as_fd(), &guest.region) {
            skipped(test, Backing::Clone, &error);
            return None;
        }
        let memory = MemoryFile::private(guest.address_space(), guest.region).expect("all of the space");
        let tracker = DirtyTracker::of_private(guest.pagemap(), guest.region, memory);
        Some((guest, uffd, tracker.expect("the region is whole pages")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address_space(&self) -> File {
        File::open(format!("/proc/{}/mem", self.pid())).expect("the guest has memory")
    }

    /// How much memory is its own alone, in pages of its memory.
    pub(crate) fn own_pages(&self) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.child.id())).expect("the guest has mappings");
        let start = format!("{:x}-", self.region.host_addr);
        let of_memory = maps.lines().skip_while(|line| !line.starts_with(&start));
        let anonymous = of_memory.filter_map(|line| line.strip_prefix("Anonymous:")).next().expect("it is told");
        let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().expect("a number");
        kib / 4
    }

    pub(crate) fn pagemap(&self) -> File {
        File::open(format!("/proc/{}/pagemap", self.child.id())).expect("the guest has a pagemap")
    }

    /// A descriptor that becomes readable when the guest dies.
    pub(crate) fn pidfd(&self) -> OwnedFd {
        // SAFETY: pidfd_open(2) takes numbers alone and touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.child.id(), 0) };
        let fd = RawFd::try_from(fd).expect("a descriptor");
        assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor, and nobody else has it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the guest can be killed");
        self.child.wait().expect("the guest has died");
    }

    /// The whole memory, as the pausing side sees it.
    pub(crate) fn view(&self) -> Mmap {
        // SAFETY: the file is ours and is not truncated. The guest writes only while it serves a request of ours.
        unsafe { Mmap::map(&self.memory) }.expect("a memfd can be mapped")
    }

    /// Reads a granule, and returns its checksum.
    pub(crate) fn read(&mut self, at: u32) -> u64 {
        self.ask(b'r', at, 0)
    }

    /// Writes the first byte of a granule.
    pub(crate) fn write(&mut self, at: u32, value: u32) {
        self.ask(b'w', at, value);
    }

    /// Writes all of a granule.
    pub(crate) fn fill(&mut self, at: u32, value: u32) {
        self.ask(b'f', at, value);
    }

    /// Discards granules, and returns how many microseconds that took.
    pub(crate) fn discard(&mut self, at: u32, count: u32) -> u64 {
        self.ask(b'd', at, count)
    }

    /// Reads every granule, from four threads at once, and returns the checksum of all.
    pub(crate) fn read_all(&mut self) -> u64 {
        self.ask(b'a', 0, 0)
    }

    /// Discards granules on one thread while another reads them, and returns how many read as neither zeros nor what
    /// the source has for them: their number and 1.
    pub(crate) fn race_discards(&mut self, rounds: u32) -> u64 {
        self.ask(b'x', 0, rounds)
    }

    /// Touches `pages` of the first `among` pages, and returns how many nanoseconds one takes in the mean, and at the
    /// 99th percentile.
    pub(crate) fn touch(&mut self, order: Order, pages: u32, among: u32) -> (u64, u64) {
        let verb = if order == Order::Ascending { b't' } else { b's' };
        let answer = self.ask(verb, among, pages);
        (answer >> 32, answer & u64::from(u32::MAX))
    }

    /// Writes to `pages` of the first `among` pages, and returns the same.
    pub(crate) fn touch_to_write(&mut self, order: Order, pages: u32, among: u32) -> (u64, u64) {
        let verb = if order == Order::Ascending { b'u' } else { b'v' };
        let answer = self.ask(verb, among, pages);
        (answer >> 32, answer & u64::from(u32::MAX))
    }

    /// Begins to read a granule.
    pub(crate) fn begin_read(&mut self, at: u32) {
        self.send(b'b', b'r', at, 0);
    }

    /// Begins to write the first byte of a granule.
    pub(crate) fn begin_write(&mut self, at: u32, value: u32) {
        self.send(b'b', b'w', at, value);
    }

    /// Begins to write to every granule, over and over.
    pub(crate) fn begin_to_write_hard(&mut self, rounds: u32) {
        self.send(b'b', b'h', 0, rounds);
    }

    /// Begins to discard granules.
    pub(crate) fn begin_discard(&mut self, at: u32, count: u32) {
        self.send(b'b', b'd', at, count);
    }

    /// Waits for what was begun first, and returns its answer.
    pub(crate) fn finish(&mut self) -> u64 {
        self.send(b'e', 0, 0, 0);
        self.answer()
    }

    fn ask(&mut self, verb: u8, at: u32, value: u32) -> u64 {
        self.send(b'n', verb, at, value);
        self.answer()
    }

    fn send(&mut self, how: u8, verb: u8, at: u32, value: u32) {
        let request = [&[how, verb][..], &at.to_le_bytes(), &value.to_le_bytes()].concat();
        self.stream.write_all(&request).expect("the guest listens");
    }

    fn answer(&mut self) -> u64 {
        let mut answer = [0; 8];
        self.stream.read_exact(&mut answer).expect("the guest answers in time");
        u64::from_le_bytes(answer)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn memory(backing: Backing, len_bytes: u64) -> File {
    let flags = match backing.granule() {
        Granule::Kib4 => MFdFlags::MFD_CLOEXEC,
        Granule::Mib2 => MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
    };
    let memory = File::from(memfd_create(c"guest", flags).expect("a memfd"));
    let is_file = matches!(backing, Backing::Shared | Backing::SharedHuge | Backing::Clone);
    memory.set_len(if is_file { len_bytes } else { 0 }).expect("the memory has a size");
    if backing == Backing::Clone {
        let bytes = vec![CLONED; usize::try_from(len_bytes).expect("it fits")];
        memory.write_all_at(&bytes, 0).expect("written");
    }
    memory
}

/// Copies the parts of a sparse file that are there to where they are in `memory`.
pub(crate) fn read_data(file: &File, memory: &mut [u8]) {
    let mut next = 0;
    while let Ok(start) = nix::unistd::lseek(file, next, Whence::SeekData) {
        next = nix::unistd::lseek(file, start, Whence::SeekHole).expect("data ends");
        let at = |offset: i64| usize::try_from(offset).expect("not negative");
        file.read_exact_at(&mut memory[at(start)..at(next)], start.unsigned_abs()).expect("read");
    }
}

/// A descriptor that the kernel has just given out as a number.
pub(crate) fn owned(number: RawFd) -> OwnedFd {
    // SAFETY: whoever calls this has just got the number from the kernel, and keeps it nowhere else.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Says that a test did not run: past the test harness, which shows only what failing tests print.
pub(crate) fn skipped(test: &str, backing: Backing, error: &dyn std::error::Error) {
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    writeln!(std::io::stderr(), "skipped: {test} on {backing:?}: {error}{source}").expect("standard error is open");
}

/// The checksum that the guest gives of these bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc32c::crc32c(bytes).into()
}

fn receive(stream: &UnixStream) -> ([OwnedFd; 2], u64) {
    let mut addr = [0; 8];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut into = [IoSliceMut::new(&mut addr)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.expect("the guest sends its descriptors");
    let fds = message.cmsgs().expect("the message is whole").find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => <[RawFd; 2]>::try_from(fds).ok(),
        _ => None,
    });
    // SAFETY: the kernel has just made these descriptors for us, and nobody else has them.
    let fds = fds.expect("the message has two descriptors").map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (fds, u64::from_le_bytes(addr))
}
