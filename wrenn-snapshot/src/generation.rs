//! A published generation.

use std::{fs::File, path::PathBuf, sync::Arc};

use crate::{
    chunks::ChunkTable,
    damage::Damage,
    data::headers::{self, HeaderSeal, absent_or_io},
    error::{Error, Result},
    extents::{Extent, ExtentIndex, Storage},
    format::manifest::{Manifest, SpaceRecord},
    id::GenerationId,
    reach::{blob_file, check_files, read_manifest},
    reader::GenerationReader,
    root::{DirLock, Root},
    shared::Shared,
    sidecar::Sidecar,
    space::Space,
    usage,
};

/// One node of a sandbox's lineage: what was stored at one pause, snapshot or fork. It never changes.
///
/// Cloning is cheap. While a clone lives, in whatever process, [`LocalStore::collect`](crate::LocalStore::collect)
/// keeps everything that the generation reaches: it holds one file descriptor, with a lock that says so.
#[derive(Clone, Debug)]
pub struct Generation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Shared>,
    manifest: Manifest,
    /// In the order of `manifest.spaces`.
    indexes: Vec<Arc<ExtentIndex>>,
    _in_use: Option<DirLock>,
}

/// How a space of a generation is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceStats {
    /// Pages in the space.
    pub pages: u32,
    /// Pages that some generation holds; the others are zeros.
    pub data_pages: u64,
    /// Pages that this generation itself holds.
    pub own_data_pages: u64,
    /// Extents in the index.
    pub extents: usize,
    /// Generations that hold at least one page.
    pub generations: usize,
}

impl Generation {
    /// Reads and checks what is in the directory that `in_use` locks.
    pub(crate) fn load(store: Arc<Shared>, id: GenerationId, in_use: DirLock) -> Result<Self> {
        let root = &store.root;
        let manifest = read_manifest(root, id)?;
        let indexes = manifest.spaces.iter().map(|record| Ok(Arc::new(read_index(root, id, record)?)));
        let indexes = indexes.collect::<Result<Vec<_>>>()?;
        let spaces = manifest.spaces.iter().map(|record| record.space);
        check_files(root, &manifest, spaces.zip(indexes.iter().map(|index| index.generations())))?;
        Ok(Self::new(store, manifest, indexes, Some(in_use)))
    }

    /// What is known to be in the directory that `in_use` locks.
    pub(crate) fn new(
        store: Arc<Shared>,
        manifest: Manifest,
        indexes: Vec<Arc<ExtentIndex>>,
        in_use: Option<DirLock>,
    ) -> Self {
        Self(Arc::new(Inner { store, manifest, indexes, _in_use: in_use }))
    }

    /// The generation's name.
    #[must_use]
    pub fn id(&self) -> GenerationId {
        self.0.manifest.id
    }

    /// The generation that it was made from. It may be gone: what a reader needs is in the index.
    #[must_use]
    pub fn parent(&self) -> Option<GenerationId> {
        self.0.manifest.parent
    }

    /// When it was made, in milliseconds since 1970.
    #[must_use]
    pub fn created_unix_ms(&self) -> u64 {
        self.0.manifest.created_unix_ms
    }

    /// The bytes that were given to [`publish`](crate::PendingGeneration::publish).
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.0.manifest.metadata
    }

    /// The spaces that it has.
    pub fn spaces(&self) -> impl Iterator<Item = Space> {
        self.0.manifest.spaces.iter().map(|record| record.space)
    }

    /// The names of its blobs.
    pub fn blobs(&self) -> impl Iterator<Item = &str> {
        self.0.manifest.blobs.iter().map(|blob| blob.name.as_str())
    }

    /// Who holds which page of a space. `None` if the generation has no such space.
    #[must_use]
    pub fn index(&self, space: Space) -> Option<&ExtentIndex> {
        self.position(space).map(|position| &*self.0.indexes[position])
    }

    /// How a space is stored. `None` if the generation has no such space.
    #[must_use]
    pub fn space(&self, space: Space) -> Option<SpaceStats> {
        let position = self.position(space)?;
        let index = &self.0.indexes[position];
        let holds = |extent: &Extent| extent.storage != Storage::Zero;
        Some(SpaceStats {
            pages: index.page_count(),
            data_pages: index.extents().filter(holds).map(|extent| u64::from(extent.count)).sum(),
            own_data_pages: self.0.manifest.spaces[position].data_pages.into(),
            extents: index.extents().len(),
            generations: index.generations().len(),
        })
    }

    /// Opens a space for reading.
    ///
    /// # Errors
    /// The generation has no such space, or a generation that the index names is missing or damaged.
    pub fn reader(&self, space: Space) -> Result<GenerationReader> {
        let position = self.position(space).ok_or_else(|| self.missing(space.name()))?;
        let index = Arc::clone(&self.0.indexes[position]);
        let files = self.0.store.data_files.open_all(&self.0.store.root, index.generations(), space)?;
        for extent in index.extents() {
            if let Storage::Data { generation, offset } = extent.storage
                && offset as usize + extent.count as usize > files[generation as usize].page_count()
            {
                let damage = Damage::Contents("an extent lies outside of an ancestor's data file");
                return Err(Error::corrupt(space.header_file(), self.id(), damage));
            }
        }
        Ok(GenerationReader::new(index, files))
    }

    /// Reads and checks a blob.
    ///
    /// # Errors
    /// The generation has no such blob, or its bytes are not those that were written.
    pub fn blob(&self, name: &str) -> Result<Vec<u8>> {
        let record = self.0.manifest.blobs.iter().find(|blob| blob.name == name);
        let record = record.ok_or_else(|| self.missing(&format!("blob {name:?}")))?;
        let file = blob_file(name);
        let path = self.dir().join(&file);
        let bytes = self
            .0
            .store
            .root
            .read_capped(&path, record.len)
            .map_err(|source| absent_or_io(&path, &file, self.id(), source))?;
        let actual = bytes.len() as u64;
        if actual != record.len {
            return Err(Error::corrupt(file, self.id(), Damage::Length { expected: record.len, actual }));
        }
        if crc32c::crc32c(&bytes) != record.crc {
            return Err(Error::corrupt(file, self.id(), Damage::Checksum("file")));
        }
        Ok(bytes)
    }

    /// Opens a blob's file for reading, unchecked: for a VMM that wants a descriptor. [`blob`](Self::blob) checks.
    ///
    /// # Errors
    /// The generation has no such blob, or it cannot be opened.
    pub fn open_blob(&self, name: &str) -> Result<File> {
        if !self.blobs().any(|blob| blob == name) {
            return Err(self.missing(&format!("blob {name:?}")));
        }
        let path = self.dir().join(blob_file(name));
        self.0.store.root.disk.open(&path).map_err(|source| absent_or_io(&path, &blob_file(name), self.id(), source))
    }

    /// A file beside the generation's own, which need not be there: something that can be made again from the generation.
    ///
    /// # Errors
    /// The name is not plain (lower-case letters, digits, `-` and `_`, at most 64 bytes), or the generation cannot be
    /// locked once more.
    pub fn sidecar(&self, name: &str) -> Result<Sidecar> {
        Sidecar::of(&self.0.store.root, self.id(), name)
    }

    /// The bytes of pages and blobs that this generation itself stores, without its headers: what the pause cost.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        let spaces: u64 = self.0.manifest.spaces.iter().map(|record| record.data_len).sum();
        spaces + self.0.manifest.blobs.iter().map(|blob| blob.len).sum::<u64>()
    }

    /// The bytes that the file system has allocated for the generation's own directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn bytes_on_disk(&self) -> Result<u64> {
        usage::of_one(&self.0.store.root, self.id())
    }

    fn position(&self, space: Space) -> Option<usize> {
        self.0.manifest.spaces.iter().position(|record| record.space == space)
    }

    fn dir(&self) -> PathBuf {
        self.0.store.root.dir(self.id())
    }

    fn missing(&self, what: &str) -> Error {
        Error::Missing { generation: self.id(), what: what.to_owned() }
    }
}

fn read_index(root: &Root, id: GenerationId, record: &SpaceRecord) -> Result<ExtentIndex> {
    let seal = HeaderSeal { len: record.header_len, crc: record.header_crc };
    let header = headers::read_header(root, id, record.space, seal)?;
    let codec = header.chunks.as_ref().map(ChunkTable::codec);
    let said = (record.page_count, record.data_pages as usize, record.data_len, record.codec);
    if said != (header.index.page_count(), header.page_crcs.len(), header.data_len(), codec) {
        let damage = Damage::Contents("its sizes are not those of the manifest");
        return Err(Error::corrupt(record.space.header_file(), id, damage));
    }
    Ok(header.index)
}
