//! Pages in memory, as a source.

use crate::{
    error::Result,
    page::{PageIndex, bytes_of, whole_pages},
    source::{PageRun, PageSource, not_whole_pages, pages_in, past_the_end},
};

/// Pages in memory. For tests, and for serving what was never stored.
#[derive(Clone, Debug)]
pub struct ByteSource(Vec<u8>);

impl ByteSource {
    /// Serves `bytes`.
    ///
    /// # Errors
    /// They are not whole pages.
    pub fn new(bytes: Vec<u8>) -> Result<Self> {
        whole_pages(bytes.len() as u64).ok_or_else(not_whole_pages)?;
        Ok(Self(bytes))
    }
}

impl PageSource for ByteSource {
    fn page_count(&self) -> u32 {
        pages_in(&self.0)
    }

    fn run<'a>(&'a self, first: PageIndex, pages_max: u32, _scratch: &'a mut [u8]) -> Result<PageRun<'a>> {
        let rest = bytes_of(first.0);
        let rest = self.0.get(rest..).filter(|rest| !rest.is_empty()).ok_or_else(|| past_the_end(first))?;
        Ok(PageRun::Data(&rest[..bytes_of(pages_in(rest).min(pages_max))]))
    }
}
