//! Pages of a plain file, as a source.

use std::{fs::File, os::unix::fs::FileExt};

use crate::{
    error::{Error, Result},
    page::{PageIndex, bytes_of, whole_pages},
    source::{PageRun, PageSource, not_whole_pages, pages_in, past_the_end},
};

/// Pages of a plain memory file, such as a full snapshot of Firecracker's. It has no checksums.
#[derive(Debug)]
pub struct FlatFile {
    file: File,
    pages: u32,
}

impl FlatFile {
    /// Serves `file`.
    ///
    /// # Errors
    /// Its length is not whole pages, or cannot be found out.
    pub fn new(file: File) -> Result<Self> {
        let len = file.metadata().map_err(|source| Error::kernel("fstat", source))?.len();
        let pages = whole_pages(len).ok_or_else(not_whole_pages)?;
        Ok(Self { file, pages })
    }
}

impl PageSource for FlatFile {
    fn page_count(&self) -> u32 {
        self.pages
    }

    fn run<'a>(&'a self, first: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>> {
        let left = self.pages.checked_sub(first.0).filter(|left| *left > 0).ok_or_else(|| past_the_end(first))?;
        let pages = left.min(pages_max).min(pages_in(scratch));
        let bytes = &mut scratch[..bytes_of(pages)];
        self.file.read_exact_at(bytes, first.byte_offset()).map_err(|source| Error::kernel("pread", source))?;
        Ok(PageRun::Data(bytes))
    }
}
