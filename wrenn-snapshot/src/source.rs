//! Where pages are read from.

use crate::{
    error::{Error, Result},
    page::{PAGE_BYTES, PageIndex},
};

/// Pages that are alike: the answer of a [`PageSource`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRun<'a> {
    /// This many pages of zeros.
    Zero(u32),
    /// The bytes of whole pages.
    Data(&'a [u8]),
}

impl PageRun<'_> {
    /// How many pages; never 0.
    #[must_use]
    pub fn pages(&self) -> u32 {
        match self {
            Self::Zero(pages) => *pages,
            Self::Data(bytes) => u32::try_from(bytes.len() / PAGE_BYTES).unwrap_or(u32::MAX),
        }
    }
}

/// Where a page server finds a guest's pages.
pub trait PageSource: Send {
    /// How many pages there are.
    fn page_count(&self) -> u32;

    /// The pages from `first` on: at least one, at most `pages_max`, at most as many as `scratch` holds, and not past
    /// the end of what is stored in one piece. `scratch` is room to read into, and holds at least one page.
    ///
    /// # Errors
    /// `first` is past the end, or the pages cannot be read as they were written.
    fn run<'a>(&'a self, first: PageIndex, pages_max: u32, scratch: &'a mut [u8]) -> Result<PageRun<'a>>;
}

/// How many whole pages some bytes are.
pub(crate) fn pages_in(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len() / PAGE_BYTES).unwrap_or(u32::MAX)
}

pub(crate) fn past_the_end(page: PageIndex) -> Error {
    Error::invalid(format!("page {page} is past the end"))
}

pub(crate) fn not_whole_pages() -> Error {
    Error::invalid("the length is not whole pages")
}
