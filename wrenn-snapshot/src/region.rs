//! Where a guest's memory is mapped.

use crate::{
    error::{Error, Result},
    page::{PAGE_BYTES_U64, PageIndex, PageRange, whole_pages},
};

/// A piece of the memory space, where the VMM's process has it mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it starts in the VMM's address space, in bytes.
    pub host_addr: u64,
    /// How long it is, in bytes.
    pub len_bytes: u64,
    /// Where it starts in the memory space, in bytes.
    pub offset_bytes: u64,
}

impl Region {
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

    /// The page mapped at an address of the region.
    pub(crate) fn page_at(&self, addr: u64) -> PageIndex {
        let page = (addr - self.host_addr + self.offset_bytes) / PAGE_BYTES_U64;
        PageIndex(u32::try_from(page).unwrap_or(u32::MAX))
    }
}

/// Regions that are whole pages, not empty, and overlap neither in memory nor in the space. Sorted by address.
#[derive(Clone, Debug)]
pub(crate) struct Regions(Vec<Region>);

impl Regions {
    /// Checks regions. They may come from another process, so nothing is taken for granted.
    pub(crate) fn new(mut regions: Vec<Region>) -> Result<Self> {
        for region in &regions {
            let aligned = region.host_addr.is_multiple_of(PAGE_BYTES_U64)
                && whole_pages(region.len_bytes).is_some_and(|pages| pages > 0)
                && whole_pages(region.offset_bytes).is_some();
            let ends = region.host_addr.checked_add(region.len_bytes).is_some()
                && region.offset_bytes.checked_add(region.len_bytes).and_then(whole_pages).is_some();
            if !aligned || !ends {
                return Err(Error::invalid(format!("{region:x?} is not whole pages")));
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
        Region { host_addr, len_bytes, offset_bytes }
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
}
