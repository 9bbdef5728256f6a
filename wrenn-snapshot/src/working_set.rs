//! Which pages a restored guest touches, in order: what its next restore should have ready before it asks.
//!
//! ```text
//!  first restore ─► PageServer ─► TouchedPages ─► WorkingSet ─► store (beside the generation)
//!                                                                 │
//!  later restores ◄─ ServeOptions::prefetch ◄──────────────────── load
//! ```
//!
//! A working set is a hint. Generations never change, so it is a file beside them that may come later, be replaced, or
//! be lost: it is neither synced nor needed, and whoever finds it damaged goes on without. Its checksum tells.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use crate::{
    error::{Error, Result},
    page::PageRange,
    working_set::format::WorkingSetDamage,
};

pub(crate) mod format;

/// Runs of pages, in the order in which a guest touched them first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    runs: Vec<PageRange>,
    pages: u32,
}

impl WorkingSet {
    /// The most pages that a working set has: 4 GiB.
    pub const PAGES_MAX: u32 = format::PAGES_MAX;

    /// No file of a working set is longer, in bytes: a cap for [reading](crate::Sidecar::read) it.
    pub const BYTES_MAX: u64 = format::BYTES_MAX;

    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds pages that were touched after all of those before. What exceeds [`PAGES_MAX`](Self::PAGES_MAX) or the last
    /// page index is left out.
    pub fn record(&mut self, pages: PageRange) {
        self.record_up_to(pages, Self::PAGES_MAX);
    }

    pub(crate) fn record_up_to(&mut self, pages: PageRange, pages_max: u32) {
        let room = pages_max.min(Self::PAGES_MAX).saturating_sub(self.pages);
        let count = pages.count.min(room).min(u32::MAX - pages.start.0);
        if count == 0 {
            return;
        }
        self.pages += count;
        let pages = PageRange { count, ..pages };
        match self.runs.last_mut() {
            Some(last) if last.end() == u64::from(pages.start.0) => last.count += count,
            // A window comes in pieces, the page that was touched first.
            Some(last) if pages.end() == u64::from(last.start.0) => {
                *last = PageRange { start: pages.start, count: last.count + count };
            }
            _ => self.runs.push(pages),
        }
    }

    /// The runs, in order. A page can be in more than one.
    #[must_use]
    pub fn runs(&self) -> &[PageRange] {
        &self.runs
    }

    /// How many pages the runs have.
    #[must_use]
    pub fn page_count(&self) -> u32 {
        self.pages
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The bytes of a file: some three for each run, and 20.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        format::encode(&self.runs, self.pages)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// The bytes are something else. Go on without.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, WorkingSetDamage> {
        let (runs, pages) = format::decode(bytes)?;
        Ok(Self { runs, pages })
    }

    /// Puts the file at `path` in place, or in that of an older one, in one step. `path` with `.part` after it is
    /// written on the way; whatever a crash leaves of that is written over.
    ///
    /// It is not synced: after a power cut it may be torn, which [`load`](Self::load) notices.
    ///
    /// # Errors
    /// The file cannot be written. What was there before is still there.
    pub fn store(&self, path: &Path) -> Result<()> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = Path::new(&part);
        let written = File::create(part).and_then(|mut file| file.write_all(&self.encode()));
        written.map_err(|source| Error::io("write", part, source))?;
        fs::rename(part, path).map_err(|source| Error::io("rename", part, source))
    }

    /// Reads the file at `path`. `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged. It is a hint, so the caller warns and goes on without.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|source| Error::io("open", path, source))?,
        };
        let mut bytes = Vec::new();
        // One byte more than any working set has is enough to see that it is too long.
        file.take(format::BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|source| Error::io("read", path, source))?;
        let damaged = |damage| Error::io("read", path, io::Error::new(io::ErrorKind::InvalidData, damage));
        Self::decode(&bytes).map(Some).map_err(damaged)
    }
}

#[cfg(test)]
mod tests;
