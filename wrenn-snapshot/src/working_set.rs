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
    sync::{Mutex, PoisonError},
};

pub use format::WorkingSetDamage;

use crate::{
    error::{Error, Result},
    page::{PageIndex, PageRange},
};

mod format;

/// Runs of pages, in the order in which a guest touched them first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    runs: Vec<PageRange>,
    pages: u32,
}

impl WorkingSet {
    /// The most pages that a working set has: 4 GiB.
    pub const PAGES_MAX: u32 = 1 << 20;

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

    fn record_up_to(&mut self, pages: PageRange, pages_max: u32) {
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
        format::encode(self)
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// The bytes are something else. Go on without.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, WorkingSetDamage> {
        format::decode(bytes)
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

/// The pages that a guest touches while a page server serves it.
#[derive(Debug)]
pub struct TouchedPages {
    pages_max: u32,
    so_far: Mutex<WorkingSet>,
}

impl TouchedPages {
    pub(crate) fn new(pages_max: u32) -> Self {
        Self { pages_max, so_far: Mutex::default() }
    }

    /// What was touched so far: the windows around faults, and none of what was prefetched or populated.
    #[must_use]
    pub fn working_set(&self) -> WorkingSet {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn record(&self, first: PageIndex, count: u32) {
        if self.pages_max > 0 {
            let mut so_far = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
            so_far.record_up_to(PageRange { start: first, count }, self.pages_max);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(runs: &[(u32, u32)]) -> WorkingSet {
        let mut set = WorkingSet::new();
        runs.iter().for_each(|(start, count)| set.record(PageRange::new(*start, *count)));
        set
    }

    #[test]
    fn the_pieces_of_a_window_are_one_run() {
        assert_eq!(
            set(&[(20, 1), (16, 4), (21, 11), (99, 1), (32, 1)]).runs(),
            [PageRange::new(16, 16), PageRange::new(99, 1), PageRange::new(32, 1)]
        );
    }

    #[test]
    fn a_recording_is_bounded() {
        let touched = TouchedPages::new(10);
        touched.record(PageIndex(0), 8);
        touched.record(PageIndex(100), 8);
        touched.record(PageIndex(200), 8);
        assert_eq!(touched.working_set().runs(), [PageRange::new(0, 8), PageRange::new(100, 2)]);
        assert_eq!(set(&[(0, u32::MAX), (5, 5)]).page_count(), WorkingSet::PAGES_MAX);
        assert_eq!(set(&[(u32::MAX - 3, 9), (7, 0)]).runs(), [PageRange::new(u32::MAX - 3, 3)]);
        let off = TouchedPages::new(0);
        off.record(PageIndex(0), 8);
        assert!(off.working_set().is_empty());
    }

    #[test]
    fn a_file_is_replaced_in_one_step_and_damage_is_told_from_absence() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("working-set");
        assert_eq!(WorkingSet::load(&path).expect("absent"), None);
        fs::write(dir.path().join("working-set.part"), b"left by a crash").expect("written");
        for set in [set(&[(3, 4)]), set(&[(9, 1), (3, 4)])] {
            set.store(&path).expect("stored");
            assert_eq!(WorkingSet::load(&path).expect("whole"), Some(set));
        }
        let names = fs::read_dir(dir.path()).expect("listed").count();
        assert_eq!(names, 1, "nothing is left over");
        fs::write(&path, b"rubbish").expect("written");
        assert!(matches!(WorkingSet::load(&path), Err(Error::Io { .. })));
    }
}
