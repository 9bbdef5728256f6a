//! Which generation holds which page: a sorted list of extents.
//!
//! Pure: neither files nor bytes. An index of a *generation* is flat, that is, it names the holder of every page
//! of the space and no reader walks a chain. An index of a *diff* has the same type and names the changed pages
//! alone; [`ExtentIndex::merge`] lays it over its parent's.

use std::ops::Range;

use crate::{
    id::GenerationId,
    page::{PageIndex, PageRange},
};

/// Where a page's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere: the page is zeros.
    Zero,
    /// In the data file of a generation.
    Data {
        /// The generation's position in [`ExtentIndex::generations`].
        generation: u32,
        /// The page's position in that generation's data file, in pages.
        offset: u32,
    },
}

/// Consecutive pages that are stored consecutively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first page.
    pub start: PageIndex,
    /// How many pages; never 0.
    pub count: u32,
    /// Where the first page is. The others follow it.
    pub storage: Storage,
}

/// What [`ExtentIndex::lookup`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many pages, from the one asked for on, are stored in one piece; never 0.
    pub pages: u32,
    /// Where the page asked for is.
    pub storage: Storage,
}

/// A list of extents that is not an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("extent {position} {problem}")]
pub struct BadExtent {
    position: usize,
    problem: &'static str,
}

/// The pages of a space, by who holds them. A page that no extent covers is zeros and was never written.
///
/// ```
/// use wrenn_snapshot::extents::{Extent, ExtentIndex, Storage};
/// use wrenn_snapshot::{GenerationId, PageIndex};
///
/// let extent = Extent { start: PageIndex(2), count: 3, storage: Storage::Data { generation: 0, offset: 7 } };
/// let index = ExtentIndex::new(10, vec![GenerationId::random()], vec![extent])?;
/// let run = index.lookup(PageIndex(3)).expect("page 3 is inside");
/// assert_eq!((run.pages, run.storage), (2, Storage::Data { generation: 0, offset: 8 }));
/// assert_eq!(index.lookup(PageIndex(5)).map(|run| run.pages), Some(5));
/// assert_eq!(index.lookup(PageIndex(10)), None);
/// # Ok::<(), wrenn_snapshot::extents::BadExtent>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentIndex {
    page_count: u32,
    generations: Vec<GenerationId>,
    /// Sorted by start, never overlapping, all inside `page_count`, none empty.
    extents: Vec<Packed>,
    buckets: Buckets,
}

/// An extent in 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed {
    start: u32,
    count: u32,
    /// [`Packed::ZERO`] if the pages are zeros, and `offset` is 0 then.
    generation: u32,
    offset: u32,
}

/// Where to begin a search: how many extents start before each stretch of `1 << shift` pages.
///
/// A search of a million extents is some twenty steps, of which the last ten each wait for memory. There is a stretch
/// for about [`EXTENTS_A_BUCKET`] extents, at 4 bytes, so the search is over those alone, which lie next to each other.
/// Extents that crowd into few stretches are still found by a binary search.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Buckets {
    shift: u32,
    /// One more than there are stretches, so that each has an end.
    firsts: Vec<u32>,
}

impl ExtentIndex {
    /// An index of `page_count` pages, none of which was ever written.
    #[must_use]
    pub fn empty(page_count: u32) -> Self {
        Self::packed(page_count, Vec::new(), Vec::new())
    }

    /// An index of these extents.
    ///
    /// # Errors
    /// The extents are not sorted, overlap, are empty, or lie outside of the pages or the generations.
    pub fn new(page_count: u32, generations: Vec<GenerationId>, extents: Vec<Extent>) -> Result<Self, BadExtent> {
        let mut end = 0;
        for (position, extent) in extents.iter().enumerate() {
            let bad = |problem| Err(BadExtent { position, problem });
            if extent.count == 0 {
                return bad("is empty");
            }
            if u64::from(extent.start.0) < end {
                return bad("is out of order");
            }
            end = extent.range().end();
            if end > u64::from(page_count) {
                return bad("lies outside of the space");
            }
            if let Storage::Data { generation, offset } = extent.storage {
                if generation as usize >= generations.len() {
                    return bad("names no generation");
                }
                if offset.checked_add(extent.count).is_none() {
                    return bad("has an impossible offset");
                }
            }
        }
        Ok(Self::packed(page_count, generations, extents.iter().map(Packed::new).collect()))
    }

    fn packed(page_count: u32, generations: Vec<GenerationId>, extents: Vec<Packed>) -> Self {
        let buckets = Buckets::new(page_count, &extents);
        Self { page_count, generations, extents, buckets }
    }

    /// How many pages the space has.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// The generations that hold at least one page. Their data files must outlive this index.
    #[must_use]
    pub fn generations(&self) -> &[GenerationId] {
        &self.generations
    }

    /// The extents, sorted by start.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = Extent> + DoubleEndedIterator + Clone {
        self.extents.iter().map(Packed::unpack)
    }

    /// Where a page is, and how many pages after it are stored in one piece with it. `None` past the end.
    ///
    /// Its time depends neither on how long a run is nor, in all but crowded places, on how many extents there are.
    #[must_use]
    pub fn lookup(&self, page: PageIndex) -> Option<Run> {
        if page.0 >= self.page_count {
            return None;
        }
        let near = self.buckets.around(page.0);
        let after = near.start + self.extents[near].partition_point(|extent| extent.start <= page.0);
        let run = after.checked_sub(1).and_then(|last| self.extents[last].unpack().run_from(page));
        Some(run.unwrap_or_else(|| {
            let end = self.extents.get(after).map_or(self.page_count, |next| next.start);
            Run { pages: end - page.0, storage: Storage::Zero }
        }))
    }
}

impl Packed {
    const ZERO: u32 = u32::MAX;

    fn new(extent: &Extent) -> Self {
        let (generation, offset) = match extent.storage {
            Storage::Zero => (Self::ZERO, 0),
            Storage::Data { generation, offset } => (generation, offset),
        };
        Self { start: extent.start.0, count: extent.count, generation, offset }
    }

    fn unpack(&self) -> Extent {
        let storage = match self.generation {
            Self::ZERO => Storage::Zero,
            generation => Storage::Data { generation, offset: self.offset },
        };
        Extent { start: PageIndex(self.start), count: self.count, storage }
    }

    /// The page after the last one, which is not past the end of the space.
    fn end(&self) -> u32 {
        self.start + self.count
    }

    /// The part of the extent inside `from..to`, which it overlaps.
    fn clip(&self, from: u32, to: u32) -> Self {
        let start = self.start.max(from);
        let skipped = if self.generation == Self::ZERO { 0 } else { start - self.start };
        Self { start, count: self.end().min(to) - start, offset: self.offset + skipped, ..*self }
    }

    /// Whether `next` goes on where this ends, in pages and in storage.
    fn is_continued_by(&self, next: &Self) -> bool {
        let offset = if self.generation == Self::ZERO { 0 } else { self.offset + self.count };
        (self.end(), self.generation, offset) == (next.start, next.generation, next.offset)
    }
}

impl Buckets {
    fn new(page_count: u32, extents: &[Packed]) -> Self {
        let wanted = (extents.len() / EXTENTS_A_BUCKET).max(1) as u64;
        let shift = (u64::from(page_count) / wanted).max(1).ilog2();
        let stretches = (page_count >> shift) as usize + 1;
        let mut firsts = Vec::with_capacity(stretches + 1);
        for (position, extent) in (0..).zip(extents) {
            let stretch = (extent.start >> shift) as usize;
            while firsts.len() <= stretch {
                firsts.push(position);
            }
        }
        firsts.resize(stretches + 1, u32::try_from(extents.len()).unwrap_or(u32::MAX));
        Self { shift, firsts }
    }

    /// The extents that start in the same stretch as a page of the space.
    fn around(&self, page: u32) -> Range<usize> {
        let stretch = (page >> self.shift) as usize;
        self.firsts[stretch] as usize..self.firsts[stretch + 1] as usize
    }
}

impl Extent {
    /// The pages that the extent covers.
    #[must_use]
    pub fn range(&self) -> PageRange {
        PageRange { start: self.start, count: self.count }
    }

    /// The rest of the extent from `page` on, if it covers the page. `page` is not before its start.
    fn run_from(&self, page: PageIndex) -> Option<Run> {
        let skipped = page.0 - self.start.0;
        (skipped < self.count).then(|| Run { pages: self.count - skipped, storage: self.storage.skip(skipped) })
    }
}

impl Storage {
    fn skip(self, pages: u32) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Data { generation, offset } => Self::Data { generation, offset: offset + pages },
        }
    }
}

/// Adds `extent` to a sorted list, joined to the last one if both pages and storage are contiguous.
pub(crate) fn push_joined(extents: &mut Vec<Extent>, extent: Extent) {
    if extent.count == 0 {
        return;
    }
    if let Some(last) = extents.last_mut()
        && last.range().end() == u64::from(extent.start.0)
        && last.storage.skip(last.count) == extent.storage
    {
        last.count += extent.count;
        return;
    }
    extents.push(extent);
}

/// Measured with a million extents: 8 make a bucket two lines of the cache, and a search a quarter slower.
const EXTENTS_A_BUCKET: usize = 1;

mod merge;
#[cfg(test)]
mod model;
