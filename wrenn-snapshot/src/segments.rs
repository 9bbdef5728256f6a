//! Where a sparse file has data.

use std::fs::File;

use nix::{errno::Errno, unistd::Whence};

use crate::{
    error::{Error, Result},
    page::PageRange,
};

/// The allocated parts of a file, widened to whole pages. Moves the file's position.
pub(crate) struct Segments<'a> {
    file: &'a File,
    pages: u32,
    next: u32,
}

impl<'a> Segments<'a> {
    /// Those among some pages.
    pub(crate) fn new(file: &'a File, among: PageRange) -> Self {
        Self { file, pages: among.start.0 + among.count, next: among.start.0 }
    }

    fn find_next(&self) -> std::result::Result<Option<PageRange>, Errno> {
        if self.next >= self.pages {
            return Ok(None);
        }
        let start = match self.seek(i64::from(self.next) * PAGE_LEN, Whence::SeekData) {
            Err(Errno::ENXIO) => return Ok(None),
            start => start?,
        };
        let end = self.seek(start, Whence::SeekHole)?;
        let clamp = |page: i64| u32::try_from(page).unwrap_or(self.pages).min(self.pages);
        let (start, end) = (clamp(start / PAGE_LEN).max(self.next), clamp((end + PAGE_LEN - 1) / PAGE_LEN));
        Ok((start < end).then(|| PageRange::new(start, end - start)))
    }

    fn seek(&self, offset: i64, whence: Whence) -> std::result::Result<i64, Errno> {
        nix::unistd::lseek(self.file, offset, whence)
    }
}

impl Iterator for Segments<'_> {
    type Item = Result<PageRange>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find_next().map_err(|errno| Error::kernel("lseek", errno)).transpose();
        self.next = match &found {
            Some(Ok(range)) => range.start.0 + range.count,
            _ => self.pages,
        };
        found
    }
}

const PAGE_LEN: i64 = 4096;
