//! Where a guest's memory is mapped.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    page::{PAGE_BYTES_U64, PageIndex, PageRange, whole_pages},
};

/// The pages that the kernel maps a region with: what a fault is about, and what is put in place at once.
///
/// Generations count in pages of 4 KiB, whatever the memory that they are served to is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB: private and shared memory.
    #[default]
    Kib4,
    /// 2 MiB: hugetlbfs. A memory has 512 times fewer faults, each brings 512 times as much, and one byte written makes
    /// 2 MiB dirty.
    Mib2,
}

impl Granule {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        PAGE_BYTES_U64 * self.pages() as u64
    }

    /// The size in pages of a generation.
    #[must_use]
    pub const fn pages(self) -> u32 {
        match self {
            Self::Kib4 => 1,
            Self::Mib2 => 512,
        }
    }

    /// The granule of so many bytes, if there is one.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        [Self::Kib4, Self::Mib2].into_iter().find(|granule| granule.bytes() == bytes)
    }
}

/// A piece of the memory space, where the VMM's process has it mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it starts in the VMM's address space, in bytes.
    pub host_addr: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
    /// Where it starts in the memory space, in bytes.
    pub offset_bytes: u64,
    /// What it is made of. Its start, length and offset are multiples of this.
    pub granule: Granule,
}

impl Region {
    /// A region of 4 KiB pages.
    #[must_use]
    pub fn new(host_addr: u64, len_bytes: u64, offset_bytes: u64) -> Self {
        Self { host_addr, len_bytes, offset_bytes, granule: Granule::Kib4 }
    }

    /// The address after the last one. [`Regions::new`] has made sure that there is one.
    pub(crate) fn host_end(&self) -> u64 {
        self.host_addr + self.len_bytes
    }

    /// The pages of the memory space that the region is.
    pub(crate) fn pages(&self) -> PageRange {
        let page = |bytes: u64| u32::try_from(bytes / PAGE_BYTES_U64).unwrap_or(u32::MAX);
        PageRange::new(page(self.offset_bytes), page(self.len_bytes))
    }

    /// Where a page of the region is mapped.
    pub(crate) fn addr_of(&self, page: PageIndex) -> u64 {
        self.host_addr + (page.byte_offset() - self.offset_bytes)
    }

    /// Where pages of the region are mapped.
    pub(crate) fn addresses_of(&self, pages: PageRange) -> Range<u64> {
        let start = self.addr_of(pages.start);
        start..start + PageIndex(pages.count).byte_offset()
    }

    /// The page mapped at an address of the region.
    pub(crate) fn page_at(&self, addr: u64) -> PageIndex {
        let page = (addr - self.host_addr + self.offset_bytes) / PAGE_BYTES_U64;
        PageIndex(u32::try_from(page).unwrap_or(u32::MAX))
    }

    /// Pages of the region, widened to whole granules.
    pub(crate) fn whole_granules(&self, pages: PageRange) -> PageRange {
        let start = self.granule_of(pages.start).start.0;
        // A region is whole granules, so this is not past its end.
        let end = (pages.start.0 + pages.count).next_multiple_of(self.granule.pages());
        PageRange::new(start, end - start)
    }

    /// The pages of the granule that a page of the region is in.
    pub(crate) fn granule_of(&self, page: PageIndex) -> PageRange {
        let pages = self.granule.pages();
        // The region's offset is a multiple of the granule.
        PageRange::new(page.0 - page.0 % pages, pages)
    }
}

/// Regions that are whole granules, not empty, and overlap neither in memory nor in the space. Sorted by address.
#[derive(Clone, Debug)]
pub(crate) struct Regions(Vec<Region>);

impl Regions {
    /// Checks regions. They may come from another process, so nothing is taken for granted.
    pub(crate) fn new(mut regions: Vec<Region>) -> Result<Self> {
        for region in &regions {
            let aligned = [region.host_addr, region.len_bytes, region.offset_bytes]
                .into_iter()
                .all(|bytes| bytes.is_multiple_of(region.granule.bytes()))
                && region.len_bytes > 0;
            let ends = region.host_addr.checked_add(region.len_bytes).is_some()
                && region.offset_bytes.checked_add(region.len_bytes).and_then(whole_pages).is_some();
            if !aligned || !ends {
                return Err(Error::invalid(format!("{region:x?} is not whole granules")));
            }
        }
        regions.sort_unstable_by_key(|region| region.offset_bytes);
        let apart = |pair: &[Region]| pair[0].offset_bytes + pair[0].len_bytes <= pair[1].offset_bytes;
        let offsets_apart = regions.windows(2).all(apart);
        regions.sort_unstable_by_key(|region| region.host_addr);
        if !offsets_apart || regions.windows(2).any(|pair| pair[0].host_end() > pair[1].host_addr) {
            return Err(Error::invalid("two regions overlap"));
        }
        Ok(Self(regions))
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Region> {
        self.0.iter()
    }

    /// The region that an address is in.
    pub(crate) fn containing(&self, addr: u64) -> Option<&Region> {
        let after = self.0.partition_point(|region| region.host_addr <= addr);
        after.checked_sub(1).map(|last| &self.0[last]).filter(|region| addr < region.host_end())
    }

    /// Where the granule that an address is in starts. An address in no region stays as it is.
    pub(crate) fn granule_start(&self, addr: u64) -> u64 {
        self.containing(addr).map_or(addr, |region| addr - addr % region.granule.bytes())
    }

    /// The pieces of `pages` that are in some region, in the order of the regions.
    pub(crate) fn pieces_of(&self, pages: PageRange) -> impl Iterator<Item = (&Region, PageRange)> {
        self.0.iter().filter_map(move |region| {
            let of_region = region.pages();
            let start = pages.start.0.max(of_region.start.0);
            let end = pages.end().min(of_region.end());
            let count = u32::try_from(end.checked_sub(u64::from(start))?).ok().filter(|count| *count > 0)?;
            Some((region, PageRange::new(start, count)))
        })
    }

    /// One more than the last page that a region reaches.
    pub(crate) fn page_end(&self) -> u64 {
        self.0.iter().map(|region| region.pages().end()).max().unwrap_or(0)
    }

    /// How many pages all regions have.
    pub(crate) fn page_count(&self) -> u64 {
        self.0.iter().map(|region| u64::from(region.pages().count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(host_addr: u64, len_bytes: u64, offset_bytes: u64) -> Region {
        Region::new(host_addr, len_bytes, offset_bytes)
    }

    fn huge(host_addr: u64, len_bytes: u64, offset_bytes: u64) -> Region {
        Region { granule: Granule::Mib2, ..region(host_addr, len_bytes, offset_bytes) }
    }

    #[test]
    fn regions_from_a_stranger_are_checked() {
        for wrong in [
            vec![region(0x1001, 0x1000, 0)],
            vec![region(0x1000, 0, 0)],
            vec![region(0x1000, 0x10, 0)],
            vec![region(0x1000, 0x1000, 8)],
            vec![region(u64::MAX - 0xfff, 0x1000, 0)],
            vec![region(0x1000, 0x1000, u64::MAX - 0xfff)],
            vec![region(0x1000, 0x2000, 0), region(0x2000, 0x1000, 0x2000)],
            vec![region(0x1000, 0x2000, 0), region(0x8000, 0x1000, 0x1000)],
            vec![huge(0x20_1000, 0x20_0000, 0)],
            vec![huge(0x20_0000, 0x20_1000, 0)],
            vec![huge(0x20_0000, 0x20_0000, 0x1000)],
        ] {
            assert!(Regions::new(wrong.clone()).is_err(), "{wrong:x?}");
        }
    }

    #[test]
    fn an_address_is_found_in_its_region() {
        let regions = Regions::new(vec![region(0x9000, 0x1000, 0), region(0x1000, 0x2000, 0x1000)]).expect("apart");
        let page = |addr| regions.containing(addr).map(|region| region.page_at(addr).0);
        assert_eq!((page(0x9fff), page(0x1000), page(0x2fff)), (Some(0), Some(1), Some(2)));
        assert_eq!((page(0), page(0x3000), page(0xa000)), (None, None, None));
        assert_eq!((regions.page_end(), regions.page_count()), (3, 3));
    }

    #[test]
    fn pages_are_cut_to_the_regions_they_are_in() {
        let regions = Regions::new(vec![region(0x9000, 0x1000, 0), region(0x1000, 0x2000, 0x2000)]).expect("apart");
        let pieces = |start, count| {
            let pieces = regions.pieces_of(PageRange::new(start, count));
            pieces.map(|(region, pages)| (region.host_addr, pages.start.0, pages.count)).collect::<Vec<_>>()
        };
        assert_eq!(pieces(0, 9), [(0x1000, 2, 2), (0x9000, 0, 1)]);
        assert_eq!(pieces(3, 1), [(0x1000, 3, 1)]);
        assert_eq!(pieces(1, 1), []);
        assert_eq!(pieces(u32::MAX, u32::MAX), []);
    }

    #[test]
    fn a_granule_is_found_from_any_address_in_it() {
        let region = huge(0x20_0000, 0x40_0000, 0x20_0000);
        let regions = Regions::new(vec![region]).expect("aligned");
        assert_eq!(
            [0x20_0000, 0x3f_ffff, 0x40_0001].map(|addr| regions.granule_start(addr)),
            [0x20_0000, 0x20_0000, 0x40_0000]
        );
        assert_eq!(regions.granule_start(0x1234), 0x1234);
        assert_eq!(region.granule_of(PageIndex(1030)), PageRange::new(1024, 512));
    }
}
