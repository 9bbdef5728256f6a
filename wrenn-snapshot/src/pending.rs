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
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    blob_writer::BlobWriter,
    chunks::ChunkTable,
    compression::Compression,
    damage::Damage,
    data::writer::DataWriter,
    diff,
    error::{Error, Result},
    extents::ExtentIndex,
    format::{
        header::Header,
        manifest::{BlobRecord, Manifest, SpaceRecord, is_blob_name},
    },
    generation::Generation,
    id::GenerationId,
    packer::{Diff, Packer},
    page::PageRange,
    reach::{MANIFEST_FILE, blob_file},
    shared::Shared,
    space::Space,
    space_writer::{SpaceWriter, WriteReport},
    temp_dir::TempDir,
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
        Ok(SpaceWriter::new(space, self.id, self.parent.clone(), file))
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
        blob.append(bytes)?;
        blob.finish()
    }

    /// Stores opaque bytes as they come. They count only once [`BlobWriter::finish`] has returned.
    ///
    /// # Errors
    /// The name is not plain or is taken, or the file cannot be made.
    pub fn blob_writer(&mut self, name: &str) -> Result<BlobWriter<'_>> {
        if !is_blob_name(name) {
            return Err(Error::invalid(format!("{name:?} cannot be a blob's name")));
        }
        if self.blobs.iter().any(|blob| blob.name == name) {
            return Err(Error::invalid(format!("blob {name:?} was written already")));
        }
        let file = self.store.root.create_file(self.dir.path.join(blob_file(name)))?;
        Ok(BlobWriter::new(&mut self.blobs, file, name))
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
        Ok(Generation::new(Arc::clone(&self.store), manifest, indexes, in_use))
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

fn cannot_store(damage: Damage) -> Error {
    Error::invalid(format!("cannot store the generation: {damage}"))
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
