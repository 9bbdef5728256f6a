//! A memory, and the descriptor that watches it by wrenn's calls or by the crate's.
#![expect(unsafe_code, reason = "memory that the kernel changes")]

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, Instant},
};

use memmap2::{MmapMut, MmapRaw, UncheckedAdvice};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{
    calls::Calls,
    outcome::Heard,
    touch::{Touch, Toucher},
};
use crate::page::PAGE_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backing {
    Private,
    Shared,
}

/// What became of a thread that touches a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// It found this byte.
    Found(u8),
    /// It waits, and the kernel said so.
    Waits(Heard),
}

pub(super) struct Side {
    /// Dropped first, which ends every wait.
    pub(super) calls: Box<dyn Calls>,
    touchers: Vec<Toucher>,
    pub(super) map: Arc<MmapRaw>,
    backing: Backing,
}

impl Side {
    pub(super) fn new(calls: Box<dyn Calls>, backing: Backing) -> Self {
        let len = PAGES as usize * PAGE_BYTES;
        let map = match backing {
            Backing::Private => MmapMut::map_anon(len).expect("memory").into(),
            Backing::Shared => {
                let file = File::from(memfd_create(c"reference", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
                file.set_len(len as u64).expect("it has a size");
                MmapRaw::map_raw(&file).expect("memory")
            }
        };
        Self { calls, touchers: Vec::new(), map: Arc::new(map), backing }
    }

    pub(super) fn start(&self) -> u64 {
        self.map.as_ptr().expose_provenance() as u64
    }

    /// The addresses of pages.
    pub(super) fn addresses(&self, pages: &Range<u32>) -> Range<u64> {
        let addr = |page: u32| self.start() + u64::from(page) * PAGE_BYTES as u64;
        addr(pages.start)..addr(pages.end)
    }

    /// Touches a page, unless a thread waits for it already.
    pub(super) fn touch(&mut self, page: u32, touch: Touch) -> Vec<(u32, Touched)> {
        if self.touchers.iter().any(|toucher| toucher.page == page) {
            return Vec::new();
        }
        self.touchers.push(Toucher::start(&self.map, page, page as usize * PAGE_BYTES, touch));
        self.settle(&(page..page + 1))
    }

    /// Waits until each thread that waited for one of these pages, and is awake now, has found it or waits again.
    pub(super) fn settle(&mut self, pages: &Range<u32>) -> Vec<(u32, Touched)> {
        let mut settled = Vec::new();
        let (mut awake, asleep): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.touchers).into_iter().partition(|toucher| pages.contains(&toucher.page));
        self.touchers = asleep;
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while !awake.is_empty() {
            assert!(Instant::now() < deadline, "a thread neither finds its page nor waits for it");
            heard.extend(self.calls.hear(self.start()));
            for toucher in std::mem::take(&mut awake) {
                let page = toucher.page;
                let waits = heard.iter().position(|heard| page_of(heard) == Some(page));
                match (waits, toucher) {
                    (Some(at), toucher) => {
                        settled.push((page, Touched::Waits(heard.swap_remove(at))));
                        self.touchers.push(toucher);
                    }
                    (None, toucher) => match toucher.end_within(Duration::from_micros(50)) {
                        Ok(byte) => settled.push((page, Touched::Found(byte))),
                        Err(toucher) => awake.push(toucher),
                    },
                }
            }
        }
        assert_eq!(heard, [], "nobody touched these");
        settled.sort_unstable_by_key(|(page, _)| *page);
        settled
    }

    /// Discards pages.
    pub(super) fn discard(&self, pages: &Range<u32>) {
        discard(&self.map, self.backing, pages);
    }

    /// For each page whether it is there, whether anything else is in its place, such as a mark of its protection, and
    /// whether it is protected.
    pub(super) fn pagemap(&self) -> Vec<[bool; 3]> {
        let mut entries = vec![0; PAGES as usize * 8];
        let pagemap = File::open("/proc/self/pagemap").expect("there is one");
        pagemap.read_exact_at(&mut entries, self.start() / PAGE_BYTES as u64 * 8).expect("it has every page");
        #[expect(clippy::host_endian_bytes, reason = "the kernel's numbers are in the machine's own byte order")]
        let entry = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        // Documentation/admin-guide/mm/pagemap.rst
        entries.chunks_exact(8).map(entry).map(|entry| [63, 62, 57].map(|bit| entry >> bit & 1 == 1)).collect()
    }

    /// Closes the descriptor, which ends every wait, and gives all that the memory has.
    pub(super) fn end(self) -> Vec<u8> {
        let Self { calls, touchers, map, .. } = self;
        drop(calls);
        for toucher in touchers {
            let page = toucher.page;
            assert!(toucher.end_within(PATIENCE).is_ok(), "page {page} is waited for without a descriptor");
        }
        // SAFETY: no thread is left that changes the memory, and nothing watches it.
        unsafe { std::slice::from_raw_parts(map.as_ptr(), map.len()) }.to_vec()
    }
}

/// Discards pages of a memory. Waits until it is heard, where it is told of.
pub(super) fn discard(map: &MmapRaw, backing: Backing, pages: &Range<u32>) {
    let advice = match backing {
        Backing::Private => UncheckedAdvice::DontNeed,
        Backing::Shared => UncheckedAdvice::Remove,
    };
    let (start, len) = (pages.start as usize * PAGE_BYTES, pages.len() * PAGE_BYTES);
    // SAFETY: nobody has a reference to the memory, whose pages may become zeros.
    unsafe { map.unchecked_advise_range(advice, start, len) }.expect("discarded");
}

fn page_of(heard: &Heard) -> Option<u32> {
    let (Heard::Missing { at, .. } | Heard::Protected { at }) = heard else { return None };
    u32::try_from(at / PAGE_BYTES as u64).ok()
}

pub(super) const PAGES: u32 = 8;
/// More than any thread here takes on a machine that is busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
