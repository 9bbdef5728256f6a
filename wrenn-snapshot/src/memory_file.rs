//! A guest's memory, as its pages are read.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use crate::{
    error::{Error, Result},
    page::{PageIndex, whole_pages},
    region::Region,
};

/// A guest's memory, whose pages are read while the guest may write to them.
///
/// ```
/// use wrenn_snapshot::{LocalStore, MemoryFile, PAGE_BYTES, PageRange, Space};
///
/// let memfd = tempfile::tempfile()?; // a VMM's, which it has mapped
/// memfd.set_len(16 * PAGE_BYTES as u64)?;
/// let memory = MemoryFile::shared(memfd)?;
/// let store = LocalStore::in_memory()?;
/// let mut pending = store.begin(None)?;
/// let mut writer = pending.space_writer(Space::Memory)?;
/// writer.add_running(&memory, &[PageRange::new(3, 2)])?;
/// pending.seal(writer)?;
/// assert_eq!(pending.publish(b"")?.space(Space::Memory).map(|space| space.pages), Some(16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Clones share its descriptor.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    file: Arc<File>,
    /// Where the memory space starts in the file, in bytes.
    start: u64,
    page_count: u32,
}

impl MemoryFile {
    /// A file that is the memory, such as a memfd that the VMM has mapped shared.
    ///
    /// # Errors
    /// The file is not whole pages.
    pub fn shared(file: File) -> Result<Self> {
        let len = file.metadata().map_err(|source| Error::kernel("fstat", source))?.len();
        let page_count = whole_pages(len).ok_or_else(|| Error::invalid("the file is not whole pages"))?;
        Ok(Self { file: Arc::new(file), start: 0, page_count })
    }

    /// A private mapping, such as a clone's of what its template had in memory: what the guest wrote is in the address space
    /// of the VMM alone. `mem` is `/proc/<pid>/mem` of the VMM, and `region` is all of the memory space. It can be read for as
    /// long as the VMM lives.
    ///
    /// # Errors
    /// The region is not whole pages from the start of the space on.
    pub fn private(mem: File, region: Region) -> Result<Self> {
        let page_count = whole_pages(region.len_bytes).filter(|_| region.offset_bytes == 0);
        let page_count = page_count.ok_or_else(|| Error::invalid("the region is not all of the memory space"))?;
        Ok(Self { file: Arc::new(mem), start: region.host_addr, page_count })
    }

    pub(crate) fn page_count(&self) -> u32 {
        self.page_count
    }

    /// Reads whole pages.
    pub(crate) fn read(&self, first: PageIndex, bytes: &mut [u8]) -> Result<()> {
        let read = self.file.read_exact_at(bytes, self.start + first.byte_offset());
        read.map_err(|source| Error::kernel("pread", source))
    }
}
