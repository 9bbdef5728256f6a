//! Memory of this process that a userfaultfd watches, and the smallest handler that can serve it: what the page server
//! is measured against.

#![allow(dead_code, reason = "each bench uses a part of this")]
#![expect(unsafe_code, reason = "mappings that another thread fills, and bare requests to userfaultfd")]

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use memmap2::{MmapMut, MmapOptions};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::memfd::{MFdFlags, memfd_create},
};
use userfaultfd::UffdBuilder;
use wrenn_snapshot::{Generation, LocalStore, PAGE_BYTES, PageRange, Region, Space, create_uffd};

/// What backs a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    Private,
    Shared,
}

/// Memory that nobody has touched yet.
pub(crate) struct Memory {
    map: MmapMut,
}

impl Memory {
    pub(crate) fn new(pages: u32, backing: Backing) -> Self {
        let len = pages as usize * PAGE_BYTES;
        let map = match backing {
            Backing::Private => MmapOptions::new().len(len).map_anon().expect("memory"),
            Backing::Shared => {
                let file = File::from(memfd_create(c"bench", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
                file.set_len(len as u64).expect("the memory has a size");
                // SAFETY: the file has no other user, and is not truncated.
                unsafe { MmapOptions::new().map_mut(&file) }.expect("memory")
            }
        };
        Self { map }
    }

    pub(crate) fn region(&self) -> Region {
        Region::new(self.map.as_ptr() as u64, self.map.len() as u64, 0)
    }

    /// Reads a byte of a page, and says how many microseconds that took.
    pub(crate) fn touch(&self, page: u32) -> f64 {
        let started = Instant::now();
        // A plain read of a slice could be moved away from its clock.
        std::hint::black_box(std::hint::black_box(&self.map)[page as usize * PAGE_BYTES]);
        started.elapsed().as_secs_f64() * 1e6
    }
}

/// A userfaultfd that watches memory for missing pages, and does nothing else.
pub(crate) fn plain_uffd(memory: &Memory) -> OwnedFd {
    let uffd = OwnedFd::from(create_uffd().expect("the bench has checked"));
    let mut api = UffdioApi { api: 0xAA, features: 0, ioctls: 0 };
    // SAFETY: the kernel reads and writes `api` alone.
    unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }.expect("the first call");
    let Region { host_addr: start, len_bytes: len, .. } = memory.region();
    let mut register = UffdioRegister { start, len, mode: REGISTER_MODE_MISSING, ioctls: 0 };
    // SAFETY: the kernel reads and writes `register` alone, and the range is memory that nothing has touched.
    unsafe { uffdio_register(uffd.as_raw_fd(), &raw mut register) }.expect("registered");
    uffd
}

/// One bare `UFFDIO_COPY` of whole pages.
pub(crate) fn copy(uffd: &OwnedFd, dst: u64, bytes: &[u8]) {
    let mut request = UffdioCopy { dst, src: bytes.as_ptr() as u64, len: bytes.len() as u64, mode: 0, copy: 0 };
    // SAFETY: the kernel reads `bytes`, and writes `request` and registered memory, which nobody borrows.
    unsafe { uffdio_copy(uffd.as_raw_fd(), &raw mut request) }.expect("copied");
}

/// The smallest possible handler: wait, read one event, copy one page out of a flat buffer. It polls for an eventfd or
/// such beside the faults, as one that can be stopped has to, and ends when that becomes readable.
pub(crate) fn smallest_handler(uffd: &OwnedFd, end: &impl AsFd, ended: &AtomicBool, region: Region, flat: &[u8]) {
    let mut message = [0; 32];
    while !ended.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(uffd.as_fd(), PollFlags::POLLIN), PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("polled");
        if nix::unistd::read(uffd, &mut message).is_ok() {
            #[expect(clippy::host_endian_bytes, reason = "the kernel's messages are in the machine's own byte order")]
            let addr = u64::from_ne_bytes(message[16..24].try_into().expect("eight bytes"));
            let addr = addr - addr % PAGE_BYTES as u64;
            let at = usize::try_from(addr - region.host_addr).expect("an address of the region");
            copy(uffd, addr, &flat[at..at + PAGE_BYTES]);
        }
    }
}

/// The same by the `userfaultfd` crate: what a program without wrenn would have.
pub(crate) fn crates_uffd(memory: &Memory) -> userfaultfd::Uffd {
    let mut builder = UffdBuilder::new();
    let uffd = builder.close_on_exec(true).non_blocking(true).user_mode_only(false).create().expect("a userfaultfd");
    uffd.register(memory.map.as_ptr().cast_mut().cast(), memory.map.len()).expect("registered");
    uffd
}

/// One copy of whole pages by the crate, to an offset of the memory that it watches.
pub(crate) fn crates_copy(uffd: &userfaultfd::Uffd, memory: &Memory, offset: usize, bytes: &[u8]) {
    assert!(offset + bytes.len() <= memory.map.len());
    let dst = memory.map.as_ptr().wrapping_add(offset).cast_mut();
    // SAFETY: the kernel reads `bytes`, and writes registered memory that nobody reads without waiting for it.
    let copied = unsafe { uffd.copy(bytes.as_ptr().cast(), dst.cast(), bytes.len(), true) };
    assert_eq!(copied.expect("copied"), bytes.len());
}

/// The smallest handler of the crate's calls: as [`smallest_handler`], but for the events, which the crate reads and names.
pub(crate) fn crates_handler(
    uffd: &userfaultfd::Uffd,
    end: &impl AsFd,
    ended: &AtomicBool,
    memory: &Memory,
    flat: &[u8],
) {
    while !ended.load(Ordering::Relaxed) {
        let mut fds = [PollFd::new(uffd.as_fd(), PollFlags::POLLIN), PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).expect("polled");
        if let Some(userfaultfd::Event::Pagefault { addr, .. }) = uffd.read_event().expect("read") {
            let offset = addr.addr() - memory.map.as_ptr().addr();
            let offset = offset - offset % PAGE_BYTES;
            crates_copy(uffd, memory, offset, &flat[offset..offset + PAGE_BYTES]);
        }
    }
}

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
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

mod request {
    //! A module of its own, since the macro makes the requests public.
    use super::{UffdioApi, UffdioCopy, UffdioRegister};

    nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, UffdioApi);
    nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, UffdioRegister);
    nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, UffdioCopy);
}
use request::{uffdio_api, uffdio_copy, uffdio_register};

const REGISTER_MODE_MISSING: u64 = 1 << 0;

/// A generation of these bytes.
pub(crate) fn store(store: &LocalStore, bytes: &[u8]) -> Generation {
    let pages = u32::try_from(bytes.len() / PAGE_BYTES).expect("few pages");
    let mut pending = store.begin(None).expect("begun");
    pending.write_dirty(Space::Memory, bytes, &[PageRange::new(0, pages)]).expect("written");
    pending.publish(b"").expect("published")
}

/// Pages that are all different, and none of zeros.
pub(crate) fn pattern(pages: u32) -> Vec<u8> {
    let mut bytes = vec![0xa5; pages as usize * PAGE_BYTES];
    for (page, bytes) in (1u32..).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
        bytes[..4].copy_from_slice(&page.to_le_bytes());
    }
    bytes
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
