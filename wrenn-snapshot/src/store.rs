//! Generations in a directory.
//!
//! # Consistency
//! Any number of processes may share a store. A [`Generation`] locks its directory for as long as it lives, a
//! [`PendingGeneration`] its own and, by holding its parent, that one's. Both are taken, and a generation is renamed
//! into place, with the store's gate shared; a collection decides and renames what goes out of sight with the gate
//! closed. So it meets nothing half-way, and what is locked counts as a root. Deleting takes no gate: what has been
//! renamed is found by nobody, and one that deletes it locks it against the others.
//!
//! # Crash consistency
//! The names that a collection took out of sight are durable before anything is deleted, so that a crash never brings
//! back a generation without its files. Whatever is half-way is in a `tmp-` directory that nobody locks, and goes with
//! the next sweep: of [`LocalStore::open`], or of a collection.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    collect::{self, Collected, UponDamage},
    compact::{self, CompactPolicy, Compaction},
    compression::Compression,
    disk::{Disk, local::LocalDisk, memory::MemoryDisk},
    error::{Error, Result},
    generation::Generation,
    id::GenerationId,
    pending::PendingGeneration,
    reach::Reach,
    root::Root,
    shared::Shared,
    sidecar::Sidecar,
    sweep::sweep,
    usage,
};

/// A directory of generations. Cloning is cheap; clones are the same store.
///
/// ```
/// use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageIndex, PageRange, Space};
///
/// let dir = tempfile::tempdir()?;
/// let store = LocalStore::open(dir.path().join("generations"))?;
///
/// let mut memory = vec![7; 4 * PAGE_BYTES];
/// let mut pending = store.begin(None)?;
/// pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, 4)])?;
/// pending.write_blob("state", b"device state")?;
/// let first = pending.publish(b"python")?;
///
/// memory[..PAGE_BYTES].fill(0);
/// let mut pending = store.begin(Some(&first))?;
/// let report = pending.write_dirty(Space::Memory, &memory, &[PageRange::new(0, 1)])?;
/// assert_eq!((report.data_pages, report.zero_pages), (0, 1));
/// let second = pending.publish(b"")?;
///
/// let mut read = vec![1; 4 * PAGE_BYTES];
/// store.load(second.id())?.reader(Space::Memory)?.read_at(PageIndex(0), &mut read)?;
/// assert_eq!(read, memory);
/// assert_eq!(first.blob("state")?, b"device state");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct LocalStore {
    shared: Arc<Shared>,
    /// How new generations are compressed.
    compression: Compression,
}

impl LocalStore {
    /// Opens the store at `root`, which is created (mode 0700, as are those above it) if it is not there, and removes what a crash left
    /// half-written. What others are writing now stays.
    ///
    /// # Errors
    /// The directory cannot be made, read or cleaned up.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Self::open_on(Arc::new(LocalDisk), root.into())
    }

    /// A store in memory, for tests and for what need not outlive the process. It is gone with its last handle.
    ///
    /// # Errors
    /// The kernel gives no memory files.
    pub fn in_memory() -> Result<Self> {
        let path = PathBuf::from("/memory");
        let disk = MemoryDisk::new(&path).map_err(|source| Error::kernel("memfd_create", source))?;
        Self::on(Arc::new(disk), path)
    }

    fn open_on(disk: Arc<dyn Disk>, path: PathBuf) -> Result<Self> {
        create_durably(&*disk, &path)?;
        Self::on(disk, path)
    }

    /// Opens the store on a disk that has its directory.
    pub(crate) fn on(disk: Arc<dyn Disk>, path: PathBuf) -> Result<Self> {
        let root = Root { disk, path };
        sweep(&root, root.close_gate()?)?;
        let shared = Arc::new(Shared { root, data_files: Arc::default() });
        Ok(Self { shared, compression: Compression::default() })
    }

    /// The store's directory. That of a store in memory is in no file system.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.shared.root.path
    }

    /// The same store, through which new generations, those of compactions too, are compressed in this way. Default: not
    /// at all.
    #[must_use]
    pub fn with_compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Begins a generation. Nothing is visible until it is published.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn begin(&self, parent: Option<&Generation>) -> Result<PendingGeneration> {
        PendingGeneration::new(Arc::clone(&self.shared), GenerationId::random(), parent, self.compression)
    }

    /// Loads a generation: its manifest and headers are read and checked, every file of its own is there and as long
    /// as it has to be, and the generations that hold pages of it are there. Blobs and pages are checked as they are
    /// read. From then on no collection removes what it reaches, whichever process collects.
    ///
    /// # Errors
    /// There is no such generation, or a file is missing or damaged; the error names it.
    pub fn load(&self, id: GenerationId) -> Result<Generation> {
        let root = &self.shared.root;
        // Once it is in use, what it reaches stays: however long it takes to read, no collection waits for that.
        let gate = root.share_gate()?;
        let in_use = root.use_dir(&root.dir(id))?.ok_or(Error::NotFound(id))?;
        drop(gate);
        Generation::load(Arc::clone(&self.shared), id, in_use)
    }

    /// The [sidecar](Generation::sidecar) of a generation that need not be loaded, and is not checked.
    ///
    /// # Errors
    /// There is no such generation, or the name is not plain.
    pub fn sidecar(&self, id: GenerationId, name: &str) -> Result<Sidecar> {
        Sidecar::of(&self.shared.root, id, name)
    }

    /// Every generation in the directory, in no order that means anything, none of them loaded or checked. It
    /// includes those that stay only for the pages that others need of them; see [`collect`](Self::collect).
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<GenerationId>> {
        collect::list(&self.shared.root)
    }

    /// Removes every generation that neither `roots` nor a [`Generation`] or [`PendingGeneration`] alive in any
    /// process reaches, and says which. A header's table of generations decides what is reached, so a parent all of
    /// whose pages were overwritten goes. Processes that share a store decide one after the other; while one decides,
    /// loading and publishing wait.
    ///
    /// What is not a root is given up: it may stay for the pages that a root needs of it, without staying readable
    /// itself.
    ///
    /// # Errors
    /// A root or a generation in use cannot be read, in which case nothing is removed, and the error names it; or a
    /// directory cannot be removed.
    pub fn collect(&self, roots: &[GenerationId]) -> Result<Vec<GenerationId>> {
        Ok(collect::collect(&self.shared.root, roots, UponDamage::Refuse)?.removed)
    }

    /// The same, and a root or a generation in use that cannot be read, or is not there, does not stop it. It is named, and
    /// all that it might reach is kept: its ancestors, as far as the manifests tell which those are, and everything that
    /// may be one of them where they do not. So whoever mends or restores the damaged files finds the rest of it.
    ///
    /// # Errors
    /// The store's directory cannot be read, or a directory cannot be removed.
    pub fn collect_around_damage(&self, roots: &[GenerationId]) -> Result<Collected> {
        collect::collect(&self.shared.root, roots, UponDamage::Spare)
    }

    /// The bytes that the file system has allocated for what `ids` reach and `without` do not: for the directories of whole
    /// generations, each counted once, though other generations need them as well. It is what a collection frees when
    /// `without` are all that is kept. What is not there has none, and one that cannot be read is counted without what it
    /// reaches. It reads some small files of each generation that is named.
    ///
    /// # Errors
    /// A directory or a file cannot be inspected.
    pub fn reached_bytes(&self, ids: &[GenerationId], without: &[GenerationId]) -> Result<u64> {
        usage::reached(&self.shared.root, ids, without)
    }

    /// Folds those ancestors into a new generation that store mostly pages which `generation` does not need, and says
    /// what it did. The new one has the same spaces, blobs and metadata, and `generation` as its parent. To free what
    /// was folded, keep the new one in the place of the old and [`collect`](Self::collect).
    ///
    /// Every page that is copied is checked. Readers of `generation`, and those who write a child of it, go on.
    ///
    /// # Errors
    /// A page or blob is damaged, or a write failed. Nothing has changed then.
    pub fn compact(&self, generation: &Generation, policy: CompactPolicy) -> Result<Compaction> {
        compact::compact(&self.shared.root, generation, policy, || self.begin(Some(generation)))
    }

    /// Whether [`compact_if_due`](Self::compact_if_due) may have something to do, whatever the others are. It takes a few
    /// hundred microseconds at most.
    ///
    /// # Errors
    /// The size of a file cannot be found out.
    pub fn may_be_due(&self, generation: &Generation) -> Result<bool> {
        compact::may_be_due(&self.shared.root, generation)
    }

    /// [Compacts](Self::compact) a generation whose lineage has become too long or too wasteful; `None` where it has
    /// not. Call it for what the next generation will be a child of, off its critical path,
    /// and give [`begin`](Self::begin) what it made instead: the content is the same.
    ///
    /// It is due where more than 64 generations hold pages, of which 32 are left then; or where those of them that store
    /// nothing for `others`, which are kept in any case, store more that is overwritten than is live, and 64 MiB at
    /// least. One of `others` that is gone or damaged is passed over, and what it keeps may be copied without need.
    ///
    /// # Errors
    /// As [`compact`](Self::compact).
    pub fn compact_if_due(&self, generation: &Generation, others: &[GenerationId]) -> Result<Option<Compaction>> {
        let spared = || {
            let read = |id: &GenerationId| Reach::of(&self.shared.root, *id).ok();
            others.iter().filter_map(read).flat_map(|other| other.generations().collect::<Vec<_>>()).collect()
        };
        compact::compact_if_due(&self.shared.root, generation, spared, || self.begin(Some(generation)))
    }
}

/// Makes the directory of a store, and those above it that are not there, and their names durable.
fn create_durably(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map(drop).map_err(|source| Error::io("open", path, source)),
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    create_durably(disk, parent)?;
    match disk.create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("create", path, error)),
        _ => {
            let synced = disk.open(parent).and_then(|dir| disk.sync(&dir));
            synced.map_err(|source| Error::io("sync", parent, source))
        }
    }
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod stalls;
