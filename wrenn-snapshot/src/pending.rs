//! A generation that is being written.
//!
//! ```text
//! LocalStore::begin ─► PendingGeneration ─ space_writer ─► add_* ─► seal; write_blob ─► publish ─► Generation
//!                              └─ drop ─► nothing
//! ```
//!
//! # Crash consistency
//! Everything goes to `tmp-<id>`, and each file is synced before the file that names it is written: data, then header,
//! then manifest, then the directory. One rename publishes it all, and the store's directory is synced after that. A
//! crash leaves a whole generation or a `tmp-` directory, which [`LocalStore::open`](crate::LocalStore::open) sweeps.

use std::{
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    chunks::ChunkTable,
    compression::Compression,
    data::DataWriter,
    diff::{self, Diff, Packer},
    error::{Error, Result},
    extents::{ExtentIndex, Storage},
    files::{DirLock, NewFile, Root},
    format::{self, BlobRecord, Damage, Header, Manifest, Space, SpaceRecord},
    generation::{Generation, MANIFEST_FILE, blob_file},
    hold::HeldPages,
    id::GenerationId,
    page::PageRange,
    store::Shared,
};

/// A generation that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub struct PendingGeneration {
    id: GenerationId,
    /// Held, so that what the parent reaches is not collected meanwhile.
    parent: Option<Generation>,
    store: Arc<Shared>,
    dir: TempDir,
    created_unix_ms: u64,
    compression: Compression,
    spaces: Vec<(SpaceRecord, Arc<ExtentIndex>)>,
    blobs: Vec<BlobRecord>,
}

/// What writing a space stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteReport {
    /// Pages that have changed, and are not zeros.
    pub data_pages: u64,
    /// Pages that were found to be zeros now.
    pub zero_pages: u64,
    /// Pages that went into the data file: more than have changed where some were replaced while it was written.
    pub stored_pages: u64,
}

impl PendingGeneration {
    pub(crate) fn new(
        store: Arc<Shared>,
        id: GenerationId,
        parent: Option<&Generation>,
        compression: Compression,
    ) -> Result<Self> {
        let dir = TempDir::create(store.root.clone(), id)?;
        let (parent, spaces, blobs) = (parent.cloned(), Vec::new(), Vec::new());
        Ok(Self { id, parent, store, dir, created_unix_ms: unix_ms(), compression, spaces, blobs })
    }

    /// The name that the generation is going to have.
    #[must_use]
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Begins a space, to be written in parts and [sealed](Self::seal) later: packing is quick, and sealing waits for
    /// the disk.
    ///
    /// # Errors
    /// The space was written already, or its file cannot be made.
    pub fn space_writer(&self, space: Space) -> Result<SpaceWriter> {
        if self.has(space) {
            return Err(Error::invalid(format!("the {} was written already", space.name())));
        }
        let file = self.store.root.create_file(self.dir.path.join(space.data_file()))?;
        let file = DataWriter::new(file, self.compression)?;
        let parent = self.parent.clone();
        Ok(SpaceWriter { space, generation: self.id, parent, file, diff: None, failed: false, sealed: false })
    }

    /// Makes a space durable and part of the generation.
    ///
    /// # Errors
    /// It is another generation's or has nothing in it, the space was written already, or a write failed.
    pub fn seal(&mut self, mut writer: SpaceWriter) -> Result<WriteReport> {
        let diff = writer.diff.take().filter(|_| writer.generation == self.id && !self.has(writer.space));
        let diff = diff.ok_or_else(|| Error::invalid("this is not an unwritten space of this generation"))?;
        let chunks = writer.file.finish()?;
        let report = diff.report();
        let written = self.write_header(writer.space, diff, chunks)?;
        writer.sealed = true;
        self.spaces.push(written);
        Ok(report)
    }

    /// Writes a space as [`SpaceWriter::add_dirty`] does, and seals it.
    ///
    /// # Errors
    /// As those two.
    pub fn write_dirty(&mut self, space: Space, view: &[u8], dirty: &[PageRange]) -> Result<WriteReport> {
        self.write_space(space, |packer, _| diff::of_dirty(packer, view, dirty))
    }

    /// Writes a space as [`SpaceWriter::add_sparse`] does, and seals it.
    ///
    /// # Errors
    /// As those two.
    pub fn write_sparse(&mut self, space: Space, file: &File) -> Result<WriteReport> {
        self.write_space(space, |packer, _| diff::of_sparse(packer, file))
    }

    /// Writes a space as [`SpaceWriter::add_compared`] does, and seals it.
    ///
    /// # Errors
    /// As those two.
    pub fn write_compared(&mut self, space: Space, file: &File) -> Result<WriteReport> {
        let mut writer = self.space_writer(space)?;
        writer.add_compared(file)?;
        self.seal(writer)
    }

    /// Stores opaque bytes under a name: lower-case letters, digits, `-` and `_`, at most 64 bytes.
    ///
    /// # Errors
    /// The name is not plain or is taken, or a write failed.
    pub fn write_blob(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut blob = self.blob_writer(name)?;
        blob.write_all(bytes).map_err(|source| Error::io("write", &blob.file.path, source))?;
        blob.finish()
    }

    /// Stores opaque bytes as they come. They count only once [`BlobWriter::finish`] has returned.
    ///
    /// # Errors
    /// The name is not plain or is taken, or the file cannot be made.
    pub fn blob_writer(&mut self, name: &str) -> Result<BlobWriter<'_>> {
        if !format::is_blob_name(name) {
            return Err(Error::invalid(format!("{name:?} cannot be a blob's name")));
        }
        if self.blobs.iter().any(|blob| blob.name == name) {
            return Err(Error::invalid(format!("blob {name:?} was written already")));
        }
        let file = self.store.root.create_file(self.dir.path.join(blob_file(name)))?;
        let record = BlobRecord { name: name.to_owned(), len: 0, crc: 0 };
        Ok(BlobWriter { blobs: &mut self.blobs, file, record, finished: false })
    }

    /// Makes the generation durable and visible, all at once. A space that was not written is the parent's. `metadata`
    /// is the caller's own, at most 1 MiB.
    ///
    /// # Errors
    /// The metadata is too long, or a write failed. The generation is gone then, and no other has changed.
    pub fn publish(mut self, metadata: &[u8]) -> Result<Generation> {
        let inherited: Vec<_> = self.parent.iter().flat_map(Generation::spaces).collect();
        for space in inherited {
            if !self.has(space) {
                self.inherit(space)?;
            }
        }
        self.spaces.sort_unstable_by_key(|(record, _)| record.space);
        let (spaces, indexes) = std::mem::take(&mut self.spaces).into_iter().unzip();
        let manifest = Manifest {
            id: self.id,
            parent: self.parent.as_ref().map(Generation::id),
            created_unix_ms: self.created_unix_ms,
            spaces,
            blobs: std::mem::take(&mut self.blobs),
            metadata: metadata.to_owned(),
        };
        let root = &self.store.root;
        root.write_synced(self.dir.path.join(MANIFEST_FILE), &manifest.encode().map_err(cannot_store)?)?;
        root.sync_dir(&self.dir.path)?;
        let in_use = self.dir.publish(self.id)?;
        Ok(self.store.adopt(manifest, indexes, in_use))
    }

    /// So that the same input gives the same bytes.
    #[cfg(test)]
    pub(crate) fn set_created(&mut self, created_unix_ms: u64) {
        self.created_unix_ms = created_unix_ms;
    }

    fn has(&self, space: Space) -> bool {
        self.spaces.iter().any(|(record, _)| record.space == space)
    }

    fn inherit(&mut self, space: Space) -> Result<()> {
        let pages = self.parent.as_ref().and_then(|parent| parent.index(space)).map_or(0, ExtentIndex::page_count);
        self.write_space(space, |_, _| Ok(Diff { index: ExtentIndex::empty(pages), page_crcs: Vec::new() }))?;
        Ok(())
    }

    pub(crate) fn write_space(
        &mut self,
        space: Space,
        pack: impl FnOnce(Packer<'_>, Option<&Generation>) -> Result<Diff>,
    ) -> Result<WriteReport> {
        let mut writer = self.space_writer(space)?;
        writer.pack(pack)?;
        self.seal(writer)
    }

    fn write_header(
        &self,
        space: Space,
        diff: Diff,
        chunks: Option<ChunkTable>,
    ) -> Result<(SpaceRecord, Arc<ExtentIndex>)> {
        let index = match self.parent.as_ref().and_then(|parent| parent.index(space)) {
            Some(parent) => ExtentIndex::merge(parent, &diff.index),
            None => ExtentIndex::merge(&ExtentIndex::empty(0), &diff.index),
        };
        let page_count = index.page_count();
        let data_pages = u32::try_from(diff.page_crcs.len()).map_err(|_| Error::invalid("too many pages"))?;
        let header = Header { generation: self.id, space, index, page_crcs: diff.page_crcs, chunks };
        let bytes = header.encode().map_err(cannot_store)?;
        let mut file = self.store.root.create_file(self.dir.path.join(space.header_file()))?;
        file.append(&bytes).and_then(|()| file.sync()).inspect_err(|_| file.discard())?;
        let (header_len, header_crc) = (bytes.len() as u64, crc32c::crc32c(&bytes));
        let (data_len, codec) = (header.data_len(), header.chunks.as_ref().map(ChunkTable::codec));
        let record = SpaceRecord { space, page_count, header_len, header_crc, data_len, data_pages, codec };
        Ok((record, Arc::new(header.index)))
    }
}

impl Diff {
    fn report(&self) -> WriteReport {
        let pages: u64 = self.index.extents().map(|extent| u64::from(extent.count)).sum();
        let zeros = self.index.extents().filter(|extent| extent.storage == Storage::Zero);
        let zero_pages = zeros.map(|extent| u64::from(extent.count)).sum();
        WriteReport { data_pages: pages - zero_pages, zero_pages, stored_pages: self.page_crcs.len() as u64 }
    }
}

/// A space that is being written. What is added later replaces what was added before, which stays in the file unused.
/// Dropped before it is [sealed](PendingGeneration::seal), it leaves nothing, and the space can be tried again; so has
/// one to be dropped that failed.
#[derive(Debug)]
pub struct SpaceWriter {
    space: Space,
    generation: GenerationId,
    parent: Option<Generation>,
    file: DataWriter,
    diff: Option<Diff>,
    /// A part failed, so what is in the file is not known.
    failed: bool,
    sealed: bool,
}

impl SpaceWriter {
    /// Adds pages of a space that is in memory: the `dirty` pages of `view`, which is the whole space. The others are the
    /// parent's. The pages must not change meanwhile, so the guest is paused.
    ///
    /// # Errors
    /// The ranges are not sorted and inside the view, or a write failed.
    pub fn add_dirty(&mut self, view: &[u8], dirty: &[PageRange]) -> Result<()> {
        self.pack(|packer, _| diff::of_dirty(packer, view, dirty))
    }

    /// Adds the `dirty` pages of a file of the space's size that a running guest may write meanwhile. What is kept of a
    /// page that it does write is of no use, so it is found as written afterwards and added again.
    ///
    /// # Errors
    /// The file is not whole pages or cannot be read, the ranges are not sorted, or a write failed.
    pub fn add_running(&mut self, file: &File, dirty: &[PageRange]) -> Result<()> {
        self.pack(|packer, _| diff::of_running(packer, file, dirty))
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

    /// How many pages are in its file, those that were replaced included.
    #[must_use]
    pub fn stored_pages(&self) -> u64 {
        self.diff.as_ref().map_or(0, |diff| diff.page_crcs.len() as u64)
    }

    fn pack(&mut self, pack: impl FnOnce(Packer<'_>, Option<&Generation>) -> Result<Diff>) -> Result<()> {
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

/// Takes a blob's bytes as they come. Dropped before [`finish`](Self::finish), it leaves no blob.
#[derive(Debug)]
pub struct BlobWriter<'a> {
    blobs: &'a mut Vec<BlobRecord>,
    file: NewFile,
    record: BlobRecord,
    finished: bool,
}

impl BlobWriter<'_> {
    /// Makes the blob durable and part of the generation.
    ///
    /// # Errors
    /// The file cannot be synced.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync()?;
        self.blobs.push(self.record.clone());
        self.finished = true;
        Ok(())
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.record.crc = crc32c::crc32c_append(self.record.crc, &bytes[..written]);
        self.record.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.file.discard();
        }
    }
}

/// A directory that is removed unless it is published. It is locked while it lives, so that a sweep by another opener
/// of the store, in this process or another, leaves it alone.
#[derive(Debug)]
struct TempDir {
    root: Root,
    path: PathBuf,
    /// `None` once it is published.
    lock: Option<DirLock>,
}

impl TempDir {
    fn create(root: Root, id: GenerationId) -> Result<Self> {
        let path = root.path.join(format!("{TEMP_PREFIX}{id}"));
        // A sweep must not come between the two.
        let _gate = root.share_gate()?;
        root.create_dir(&path)?;
        let lock = root.use_dir(&path).inspect_err(|_| {
            let _ = root.remove_dir(&path);
        })?;
        Ok(Self { root, path, lock })
    }

    /// Renames the complete directory into place; from the rename on, the generation is there. The lock that it
    /// returns has not been let go in between, and what the generation needs is locked through its parent until the
    /// gate is open again: a collection sees the one or the other.
    fn publish(&mut self, id: GenerationId) -> Result<Option<DirLock>> {
        let (temp, path) = (self.path.clone(), self.root.dir(id));
        let _gate = self.root.share_gate()?;
        self.root.rename(&temp, &path)?;
        // A generation that may be gone after a crash is not one.
        self.root.sync_dir(&self.root.path).inspect_err(|_| {
            if self.root.rename(&path, &temp).is_err() {
                self.path = path;
            }
        })?;
        Ok(self.lock.take())
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // The next open of the store sweeps what cannot be removed now.
            let _ = self.root.remove_dir(&self.path);
        }
    }
}

fn cannot_store(damage: Damage) -> Error {
    Error::invalid(format!("cannot store the generation: {damage}"))
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How a directory is called that is not, or not any more, a generation.
pub(crate) const TEMP_PREFIX: &str = "tmp-";
