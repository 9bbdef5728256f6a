//! Pages, and the units they are counted in.

use std::fmt;

/// Bytes in a page. The only page size that the format knows.
pub const PAGE_BYTES: usize = 4096;

pub(crate) const PAGE_BYTES_U64: u64 = 4096;

/// The size of a page in bytes, as a header records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u32);

impl PageSize {
    /// 4 KiB.
    pub const KIB_4: Self = Self(4096);

    /// The size that `bytes` names, if this version supports it.
    #[must_use]
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        (bytes == Self::KIB_4.0).then_some(Self::KIB_4)
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }
}

/// A page's position in a space, counted in pages from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// Where the page starts, in bytes.
    #[must_use]
    pub fn byte_offset(self) -> u64 {
        u64::from(self.0) * PAGE_BYTES_U64
    }
}

impl fmt::Display for PageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `count` pages from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first page.
    pub start: PageIndex,
    /// How many pages.
    pub count: u32,
}

impl PageRange {
    /// `count` pages from page `start` on.
    #[must_use]
    pub fn new(start: u32, count: u32) -> Self {
        Self { start: PageIndex(start), count }
    }

    /// The page after the last one. Wider than a page index, so that it cannot overflow.
    #[must_use]
    pub fn end(self) -> u64 {
        u64::from(self.start.0) + u64::from(self.count)
    }

    /// Whether a page is one of them.
    #[must_use]
    pub fn contains(self, page: PageIndex) -> bool {
        self.start <= page && u64::from(page.0) < self.end()
    }
}

/// Pages that another program has read, and what they held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPages {
    /// Which pages.
    pub pages: PageRange,
    /// Their bytes; `None` if all of them are zeros.
    pub bytes: Option<Vec<u8>>,
}

/// How many pages `bytes` are, if they are whole pages and few enough to index.
pub(crate) fn whole_pages(bytes: u64) -> Option<u32> {
    if !bytes.is_multiple_of(PAGE_BYTES_U64) {
        return None;
    }
    u32::try_from(bytes / PAGE_BYTES_U64).ok()
}

/// The bytes that `pages` pages take, as a length in memory.
pub(crate) const fn bytes_of(pages: u32) -> usize {
    pages as usize * PAGE_BYTES
}

/// Whether a page holds zeros alone. A comparison of slices is a vectorized `memcmp`.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    page == ZEROS
}
