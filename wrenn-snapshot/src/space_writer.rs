//! A space that is being written.

use std::fs::File;

use crate::{
    data::writer::DataWriter,
    diff,
    error::{Error, Result},
    extents::{ExtentIndex, Storage},
    generation::Generation,
    hold::held::HeldPages,
    id::GenerationId,
    memory_file::MemoryFile,
    packer::{Diff, Packer},
    page::{PageRange, ReadPages},
    space::Space,
};

/// What writing a space stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteReport {
    /// Pages that have changed, and are not zeros.
    pub data_pages: u64,
    /// Pages that were found to be zeros now.
    pub zero_pages: u64,
    /// Pages that went into the data file: more than have changed where some were replaced while it was written.
    pub stored_pages: u64,
}

impl Diff {
    pub(crate) fn report(&self) -> WriteReport {
        let pages: u64 = self.index.extents().map(|extent| u64::from(extent.count)).sum();
        let zeros = self.index.extents().filter(|extent| extent.storage == Storage::Zero);
        let zero_pages = zeros.map(|extent| u64::from(extent.count)).sum();
        WriteReport { data_pages: pages - zero_pages, zero_pages, stored_pages: self.page_crcs.len() as u64 }
    }
}

/// A space that is being written. What is added later replaces what was added before, which stays in the file unused.
/// Dropped before it is [sealed](crate::PendingGeneration::seal), it leaves nothing, and the space can be tried again; so has
/// one to be dropped that failed.
#[derive(Debug)]
pub struct SpaceWriter {
    pub(crate) space: Space,
    pub(crate) generation: GenerationId,
    parent: Option<Generation>,
    pub(crate) file: DataWriter,
    pub(crate) diff: Option<Diff>,
    /// A part failed, so what is in the file is not known.
    failed: bool,
    pub(crate) sealed: bool,
}

impl SpaceWriter {
    /// Writes a space of `generation`, a child of `parent`, to a data file.
    pub(crate) fn new(space: Space, generation: GenerationId, parent: Option<Generation>, file: DataWriter) -> Self {
        Self { space, generation, parent, file, diff: None, failed: false, sealed: false }
    }

    /// Adds pages of a space that is in memory: the `dirty` pages of `view`, which is the whole space. The others are the
    /// parent's. The pages must not change meanwhile, so the guest is paused.
    ///
    /// # Errors
    /// The ranges are not sorted and inside the view, or a write failed.
    pub fn add_dirty(&mut self, view: &[u8], dirty: &[PageRange]) -> Result<()> {
        self.pack(|packer, _| diff::of_dirty(packer, view, dirty))
    }

    /// Adds the `dirty` pages of a memory of the space's size that a running guest may write meanwhile. What is kept of a
    /// page that it does write is of no use, so it is found as written afterwards and added again.
    ///
    /// # Errors
    /// The memory cannot be read, the ranges are not sorted, or a write failed.
    pub fn add_running(&mut self, memory: &MemoryFile, dirty: &[PageRange]) -> Result<()> {
        self.pack(|packer, _| diff::of_running(packer, memory, dirty))
    }

    /// Adds pages of a running guest, as they were when they were [held](crate::DirtyTracker::hold). The guest may write
    /// to them meanwhile; it waits when it does so faster than they are added.
    ///
    /// # Errors
    /// The pages cannot be read, or a write failed.
    pub fn add_held(&mut self, held: &HeldPages) -> Result<()> {
        self.pack(|packer, _| diff::of_held(packer, held))
    }

    /// Adds a sparse file of the space's size, whose allocated parts are the changed pages. Its holes are the parent's
    /// pages, or zeros without a parent. That is the way to store a whole memory file for the first time, and a Diff
    /// snapshot of Firecracker's. The file's position moves.
    ///
    /// # Errors
    /// The file is not whole pages or cannot be read, or a write failed.
    pub fn add_sparse(&mut self, file: &File) -> Result<()> {
        self.pack(|packer, _| diff::of_sparse(packer, file))
    }

    /// Adds a file of the space's size, whose holes are zeros: the pages that are not what the parent has. The way to
    /// store a drive, and memory whose dirty pages are not known. The file's position moves.
    ///
    /// # Errors
    /// The file is not whole pages, it or the parent cannot be read, or a write failed.
    pub fn add_compared(&mut self, file: &File) -> Result<()> {
        let space = self.space;
        self.pack(|packer, parent| match parent.filter(|parent| parent.index(space).is_some()) {
            Some(parent) => diff::of_comparison(packer, file, &parent.reader(space)?),
            None => diff::of_sparse(packer, file),
        })
    }

    /// Adds what another program has read of a space of `pages` pages: those pages that are not what the parent has. They
    /// may come in any order, each once; pages that do not come are the parent's. The way to store a drive whose VMM
    /// tells what was written to it.
    ///
    /// # Errors
    /// There is no parent with this space, a piece is an error, comes twice or lies outside of the space, the parent
    /// cannot be read, or a write failed.
    pub fn add_read(&mut self, pages: u32, pieces: impl Iterator<Item = Result<ReadPages>>) -> Result<()> {
        let space = self.space;
        self.pack(|packer, parent| {
            let parent = parent.filter(|parent| parent.index(space).is_some());
            let parent = parent.ok_or_else(|| Error::invalid("without a parent, all of a space has to be written"))?;
            diff::of_pieces(packer, pages, pieces, &parent.reader(space)?)
        })
    }

    /// How many pages are in its file, those that were replaced included.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.diff.as_ref().map_or(0, |diff| diff.page_crcs.len() as u64)
    }

    pub(crate) fn pack(&mut self, pack: impl FnOnce(Packer<'_>, Option<&Generation>) -> Result<Diff>) -> Result<()> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(Error::invalid("a part of this space could not be written"));
        }
        let (earlier, page_crcs) = match self.diff.take() {
            Some(Diff { index, page_crcs }) => (Some(index), page_crcs),
            None => (None, Vec::new()),
        };
        let later = pack(Packer::new(self.generation, &mut self.file, page_crcs), self.parent.as_ref())?;
        let index = match earlier {
            Some(earlier) => ExtentIndex::merge(&earlier, &later.index),
            None => later.index,
        };
        self.diff = Some(Diff { index, page_crcs: later.page_crcs });
        self.failed = false;
        Ok(())
    }
}

impl Drop for SpaceWriter {
    fn drop(&mut self) {
        if !self.sealed {
            self.file.discard();
        }
    }
}
