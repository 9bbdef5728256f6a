//! `userfaultfd(2)` on another process's memory.
//!
//! The `ioctl`s are issued here rather than through the `userfaultfd` crate: its copy takes a negative `-errno` for a
//! length and cannot install a page write-protected, it knows neither `WP_ASYNC` nor `WP_UNPOPULATED`, and its build needs
//! libclang. Where the feature `userfaultfd` is on, its type is taken and given, and a test holds what is here against it.
#![expect(unsafe_code, reason = "ioctl(2) and userfaultfd(2) have no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag},
};

use crate::error::{Error, Result};

#[cfg(feature = "userfaultfd")]
mod conversion;
#[cfg(feature = "userfaultfd")]
#[cfg(test)]
mod reference;

/// Features of userfaultfd, which the first call on a descriptor asks for and which hold for its life.
/// From `linux/userfaultfd.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// What every kernel has: missing pages, and synchronous write protection where that is asked for.
    pub const NONE: Self = Self(0);
    /// What serving and tracking shared memory takes: missing pages of shared memory, and asynchronous write
    /// protection that covers pages which are not there yet. Linux 6.7.
    pub const SERVE_AND_TRACK: Self =
        Self(PAGEFAULT_FLAG_WP | MISSING_SHMEM | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC);
    /// What serving shared memory takes, and being told of the first write to each page ([`Tracking::Sync`]). Linux 5.19.
    ///
    /// [`Tracking::Sync`]: crate::Tracking::Sync
    pub const SERVE_AND_TRACK_SYNC: Self = Self(PAGEFAULT_FLAG_WP | MISSING_SHMEM | WP_HUGETLBFS_SHMEM);
    /// What [holding pages](crate::DirtyTracker::hold) takes of the second descriptor: to be told of writes to shared
    /// memory. Linux 5.19.
    pub(crate) const HOLD: Self = Self(PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED);
    /// To be told which thread waits, as [`ServeOptions::affinity`](crate::ServeOptions::affinity) takes. Linux 4.14.
    pub const THREAD_ID: Self = Self(1 << 8);
    /// To be told of discarded pages (`MADV_DONTNEED`, `MADV_REMOVE`). Whoever discards waits until the event is read.
    pub const EVENT_REMOVE: Self = Self(1 << 3);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that a descriptor's handshake asked for. `None` if it has not been made.
    ///
    /// From `/proc/self/fdinfo`, the only place where the kernel tells: a second handshake just fails.
    ///
    /// # Errors
    /// `/proc` cannot be read, or the descriptor is not a userfaultfd.
    pub fn of(uffd: BorrowedFd<'_>) -> Result<Option<Self>> {
        let path = format!("/proc/self/fdinfo/{}", uffd.as_raw_fd());
        let info = std::fs::read_to_string(&path).map_err(|error| Error::io("read", Path::new(&path), error))?;
        let features = parse_info(&info).ok_or_else(|| Error::invalid("the descriptor is not a userfaultfd"))?;
        Ok((features & INITIALIZED != 0).then_some(Self(features & !INITIALIZED)))
    }

    /// Whether the kernel marks written pages by itself.
    pub(crate) fn mark_writes(self) -> bool {
        self.0 & WP_ASYNC != 0
    }

    /// Whether somebody has to listen, or whoever changes the address space waits for ever.
    pub(crate) fn report_changes(self) -> bool {
        self.0 & (EVENT_FORK | EVENT_REMAP | Self::EVENT_REMOVE.0 | EVENT_UNMAP_FEATURE) != 0
    }
}

/// The features in a line such as `API: aa:80008001:80000000000001ff`.
fn parse_info(info: &str) -> Option<u64> {
    let fields = info.lines().find_map(|line| line.strip_prefix("API:"))?;
    u64::from_str_radix(fields.trim().split(':').nth(1)?, 16).ok()
}

/// What a thread wanted of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Something that the kernel says about registered memory. Addresses are those of the process that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A thread waits for a page that is not there. Which one is 0 where the descriptor does not tell.
    Missing { addr: u64, access: Access, thread: u32 },
    /// A thread waits to write to a protected page. Asynchronous protection never says so.
    Protected { addr: u64 },
    /// The pages of `start..end` are being discarded.
    Removed { start: u64, end: u64 },
    /// An event that was not asked for.
    Other,
}

/// Whether the pages that a copy installs count as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// Write-protected: the next write marks the page.
    Clean,
    /// Written already.
    Dirty,
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copied {
    /// So many bytes are in place, and those who waited for them are awake. Fewer than asked for is not the end.
    Bytes(u64),
    /// The first page was there already. Who waits for it is not awake.
    Exists,
    /// The memory is being changed; the kernel says nothing more of this page.
    Again,
    /// No one mapping that is registered with the descriptor has all of the range.
    Unmapped,
    /// The process is gone.
    Gone,
}

/// A userfaultfd of some process: this one, or one that handed it over.
///
/// Any descriptor can become one. That it is a userfaultfd is found out where it is first used.
///
/// ```
/// use std::os::fd::{AsFd, OwnedFd};
///
/// use wrenn_snapshot::{Features, Uffd, create_uffd};
///
/// let Ok(uffd) = create_uffd() else { return Ok(()) }; // for root, or with vm.unprivileged_userfaultfd=1
/// assert_eq!(Features::of(uffd.as_fd())?, None); // nobody has made the first call on it
/// let descriptor = OwnedFd::from(uffd);
/// let uffd = Uffd::from(descriptor);
/// # drop(uffd);
/// # Ok::<(), wrenn_snapshot::Error>(())
/// ```
#[derive(Debug)]
pub struct Uffd(OwnedFd);

impl Uffd {
    /// Another descriptor of the same userfaultfd. What it watches stays watched until the last one is closed.
    ///
    /// # Errors
    /// The process has as many descriptors as it may have.
    pub fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(|error| Error::kernel("dup", error))
    }

    /// Makes it non-blocking, as reading its events takes: polling a blocking one only ever gives an error.
    pub(crate) fn non_blocking(self) -> Result<Self> {
        let flags = nix::fcntl::fcntl(&self.0, FcntlArg::F_GETFL).map_err(|errno| Error::kernel("fcntl", errno))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&self.0, FcntlArg::F_SETFL(flags)).map_err(|errno| Error::kernel("fcntl", errno))?;
        Ok(self)
    }

    /// Appends every event that waits, and returns once none is left; or once there are so many that a guest whose threads
    /// make them as fast as they are read could make the list grow without end.
    ///
    /// A process that the VMM forks is not served: its descriptor is closed, since a VMM that forks for ever would use up
    /// those of this process.
    pub(crate) fn drain(&self, events: &mut Vec<Event>) -> Result<()> {
        let mut buffer = [0; MESSAGE_LEN * MESSAGES_AT_ONCE];
        loop {
            match nix::unistd::read(&self.0, &mut buffer) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(()),
                Ok(len) => {
                    let messages = buffer[..len].chunks_exact(MESSAGE_LEN);
                    messages.clone().for_each(|message| drop(child_of(message)));
                    events.extend(messages.map(parse_event));
                    // The kernel fills the buffer with all that there is, so there was no more.
                    if len < buffer.len() || events.len() >= EVENTS_MAX {
                        return Ok(());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::kernel("read of userfaultfd", errno)),
            }
        }
    }

    /// Installs `bytes`, whole pages, at `addr`, and wakes who waits for them.
    pub(crate) fn copy(&self, addr: u64, bytes: &[u8], install: Install) -> Result<Copied> {
        let mode = match install {
            Install::Clean => COPY_MODE_WP,
            Install::Dirty => 0,
        };
        let mut request = UffdioCopy { dst: addr, src: bytes.as_ptr() as u64, len: bytes.len() as u64, mode, copy: 0 };
        // SAFETY: the kernel reads `len` bytes at `src`, which is `bytes`, and writes the fields of `request`. What
        // it changes at `addr` is memory of the descriptor's process that is registered with the descriptor.
        let result = unsafe { uffdio_copy(self.0.as_raw_fd(), &raw mut request) };
        match (result, request.copy) {
            (Ok(_), _) => Ok(Copied::Bytes(request.len)),
            (Err(_), done) if done > 0 => Ok(Copied::Bytes(done.unsigned_abs())),
            (Err(Errno::EEXIST), _) => Ok(Copied::Exists),
            (Err(Errno::EAGAIN), _) => Ok(Copied::Again),
            (Err(Errno::ENOENT), _) => Ok(Copied::Unmapped),
            (Err(Errno::ESRCH), _) => Ok(Copied::Gone),
            (Err(errno), _) => Err(Error::kernel("UFFDIO_COPY", errno)),
        }
    }

    /// Wakes who waits for pages of a range.
    pub(crate) fn wake(&self, addr: u64, len: u64) -> Result<()> {
        let mut range = UffdioRange { start: addr, len };
        // SAFETY: the kernel reads `range` alone.
        match unsafe { uffdio_wake(self.0.as_raw_fd(), &raw mut range) } {
            Ok(_) | Err(Errno::ESRCH | Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::kernel("UFFDIO_WAKE", errno)),
        }
    }

    /// Lifts the write protection of a range and wakes who waits to write.
    pub(crate) fn unprotect(&self, addr: u64, len: u64) -> Result<Copied> {
        match set_protection(self.0.as_fd(), UffdioRange { start: addr, len }, 0) {
            Ok(()) => Ok(Copied::Bytes(len)),
            Err(Errno::EAGAIN) => Ok(Copied::Again),
            Err(Errno::ENOENT) => Ok(Copied::Unmapped),
            Err(Errno::ESRCH) => Ok(Copied::Gone),
            Err(errno) => Err(Error::kernel("UFFDIO_WRITEPROTECT", errno)),
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Uffd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.0
    }
}

/// A new userfaultfd of this process. A guest's is made inside of its VMM.
///
/// # Errors
/// The kernel has none, or the caller may not have one (`vm.unprivileged_userfaultfd`).
pub fn create() -> Result<Uffd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: userfaultfd(2) takes flags alone and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = i32::try_from(Errno::result(fd).map_err(|errno| Error::kernel("userfaultfd", errno))?)
        .map_err(|error| Error::kernel("userfaultfd", io::Error::other(error)))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(Uffd(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The first call on a descriptor. The kernel refuses a second one.
pub(crate) fn handshake(uffd: BorrowedFd<'_>, features: Features) -> Result<()> {
    let mut request = UffdioApi { api: UFFD_API, features: features.0, ioctls: 0 };
    // SAFETY: the kernel reads and writes `request` alone.
    unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut request) }.map_err(|errno| Error::kernel("UFFDIO_API", errno))?;
    Ok(())
}

/// What a range is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    Missing,
    Writes,
    MissingAndWrites,
}

/// Asks for missing faults, write protection, or both, on a range. It may be registered with the same descriptor.
pub(crate) fn register(uffd: BorrowedFd<'_>, addr: u64, len: u64, watched: Watched) -> Result<()> {
    let range = UffdioRange { start: addr, len };
    let mode = match watched {
        Watched::Missing => REGISTER_MODE_MISSING,
        Watched::Writes => REGISTER_MODE_WP,
        Watched::MissingAndWrites => REGISTER_MODE_MISSING | REGISTER_MODE_WP,
    };
    let mut request = UffdioRegister { range, mode, ioctls: 0 };
    // SAFETY: the kernel reads and writes `request` alone. The memory that it then watches is the range of the
    // descriptor's process, and watching does not change what is in it.
    unsafe { uffdio_register(uffd.as_raw_fd(), &raw mut request) }
        .map_err(|errno| Error::kernel("UFFDIO_REGISTER", errno))?;
    Ok(())
}

/// Ends what was asked for on a range, which need not be registered. Its pages are not protected afterwards.
pub(crate) fn unregister(uffd: BorrowedFd<'_>, addr: u64, len: u64) -> Result<()> {
    let mut range = UffdioRange { start: addr, len };
    // SAFETY: the kernel reads `range` alone. What is in the memory does not change.
    unsafe { uffdio_unregister(uffd.as_raw_fd(), &raw mut range) }
        .map_err(|errno| Error::kernel("UFFDIO_UNREGISTER", errno))?;
    Ok(())
}

/// Write-protects a registered range, including the pages that are not there yet.
///
/// The kernel puts it off for as long as an event of a change to the memory is not read, such as that of a discard. It is
/// tried again for [`PATIENCE`], and is an error then.
pub(crate) fn protect(uffd: BorrowedFd<'_>, addr: u64, len: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        if try_protect(uffd, addr, len)? {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(Error::kernel("UFFDIO_WRITEPROTECT", Errno::EAGAIN));
        }
        std::thread::sleep(RETRY);
    }
}

/// As [`protect`], but once. `false` if the kernel puts it off.
pub(crate) fn try_protect(uffd: BorrowedFd<'_>, addr: u64, len: u64) -> Result<bool> {
    match set_protection(uffd, UffdioRange { start: addr, len }, WRITEPROTECT_MODE_WP) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(Error::kernel("UFFDIO_WRITEPROTECT", errno)),
    }
}

fn set_protection(uffd: BorrowedFd<'_>, range: UffdioRange, mode: u64) -> std::result::Result<(), Errno> {
    let mut request = UffdioWriteprotect { range, mode };
    // SAFETY: the kernel reads `request` alone. Protection is set on registered memory of the descriptor's process,
    // and changes what a write does there, not what is in it.
    unsafe { uffdio_writeprotect(uffd.as_raw_fd(), &raw mut request) }.map(|_| ())
}

/// The descriptor of a child's memory, which the kernel has put into this process with the event of its fork.
fn child_of(message: &[u8]) -> Option<OwnedFd> {
    if message.first() != Some(&EVENT_FORK_MESSAGE) {
        return None;
    }
    #[expect(clippy::host_endian_bytes, reason = "the kernel's messages are in the machine's own byte order")]
    let number = i32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
    // SAFETY: the kernel has just made this descriptor for whoever reads the event, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// One `struct uffd_msg`: the event in byte 0, its arguments from byte 8 on.
fn parse_event(message: &[u8]) -> Event {
    let (first, second, third) = (word(message, 8), word(message, 16), word(message, 24));
    let missing = |access| {
        let thread = u32::try_from(third & u64::from(u32::MAX)).unwrap_or(0);
        Event::Missing { addr: second, access, thread }
    };
    match message.first() {
        Some(&EVENT_PAGEFAULT) if first & FAULT_FLAG_WP != 0 => Event::Protected { addr: second },
        Some(&EVENT_PAGEFAULT) if first & FAULT_FLAG_WRITE != 0 => missing(Access::Write),
        Some(&EVENT_PAGEFAULT) => missing(Access::Read),
        Some(&EVENT_REMOVE | &EVENT_UNMAP) => Event::Removed { start: first, end: second },
        _ => Event::Other,
    }
}

fn word(message: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    if let Some(field) = message.get(at..at + 8) {
        bytes.copy_from_slice(field);
    }
    #[expect(clippy::host_endian_bytes, reason = "the kernel's messages are in the machine's own byte order")]
    u64::from_ne_bytes(bytes)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioWriteprotect {
    range: UffdioRange,
    mode: u64,
}

mod request {
    //! The requests of `linux/userfaultfd.h`. A module of their own, since the macro makes them public.
    use super::{UffdioApi, UffdioCopy, UffdioRange, UffdioRegister, UffdioWriteprotect};

    const UFFDIO: u8 = 0xAA;
    nix::ioctl_readwrite!(uffdio_api, UFFDIO, 0x3F, UffdioApi);
    nix::ioctl_readwrite!(uffdio_register, UFFDIO, 0x00, UffdioRegister);
    nix::ioctl_read!(uffdio_unregister, UFFDIO, 0x01, UffdioRange);
    nix::ioctl_read!(uffdio_wake, UFFDIO, 0x02, UffdioRange);
    nix::ioctl_readwrite!(uffdio_copy, UFFDIO, 0x03, UffdioCopy);
    nix::ioctl_readwrite!(uffdio_writeprotect, UFFDIO, 0x06, UffdioWriteprotect);
}
use request::{uffdio_api, uffdio_copy, uffdio_register, uffdio_unregister, uffdio_wake, uffdio_writeprotect};

/// A page server reads its events between two reads of its source, of which one from a disk that is busy takes this long.
const PATIENCE: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_micros(50);
const UFFD_API: u64 = 0xAA;
const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const MISSING_SHMEM: u64 = 1 << 5;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;
const EVENT_FORK: u64 = 1 << 1;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_UNMAP_FEATURE: u64 = 1 << 6;
/// The kernel's own mark of a descriptor that has had its handshake (`UFFD_FEATURE_INITIALIZED`).
const INITIALIZED: u64 = 1 << 31;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;
const COPY_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK_MESSAGE: u8 = 0x13;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;
const FAULT_FLAG_WRITE: u64 = 1 << 0;
const FAULT_FLAG_WP: u64 = 1 << 1;
const MESSAGE_LEN: usize = 32;
const MESSAGES_AT_ONCE: usize = 64;
/// More than a guest has threads that can wait.
const EVENTS_MAX: usize = 1 << 16;
