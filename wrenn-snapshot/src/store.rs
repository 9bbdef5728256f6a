//! Generations in a local directory.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
};

use crate::{
    data::DataFiles,
    error::{Error, Result},
    files,
    generation::{self, Generation},
    id::GenerationId,
    pending::{PendingGeneration, TEMP_PREFIX, TempDir},
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
pub struct LocalStore(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    root: PathBuf,
    data_files: Arc<DataFiles>,
    /// Held for writing while a collection decides and deletes, for reading while a generation comes into hand.
    gate: RwLock<()>,
    live: Mutex<Vec<Weak<generation::Inner>>>,
}

impl LocalStore {
    /// Opens the store at `root`, which is created (mode 0700) if it is not there, and removes what a crash left
    /// half-written. What others are writing now stays.
    ///
    /// # Errors
    /// The directory cannot be made, read or cleaned up.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if !root.is_dir() {
            if let Some(parent) = root.parent() {
                fs::create_dir_all(parent).map_err(|source| Error::io("create", parent, source))?;
            }
            files::create_dir(&root)?;
        }
        sweep(&root)?;
        let shared = Shared { root, data_files: Arc::default(), gate: RwLock::default(), live: Mutex::default() };
        Ok(Self(Arc::new(shared)))
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Begins a generation. Nothing is visible until it is published.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn begin(&self, parent: Option<&Generation>) -> Result<PendingGeneration> {
        PendingGeneration::new(Arc::clone(&self.0), parent)
    }

    /// Loads a generation: its manifest and headers are read and checked, every file of its own is there and as long
    /// as it has to be, and the generations that hold pages of it are there. Blobs and pages are checked as they are
    /// read.
    ///
    /// # Errors
    /// There is no such generation, or a file is missing or damaged; the error names it.
    pub fn load(&self, id: GenerationId) -> Result<Generation> {
        let _gate = self.0.gate.read().unwrap_or_else(PoisonError::into_inner);
        self.0.bring_to_life(id)
    }

    /// Every generation in the directory, in no order that means anything, none of them loaded or checked. It
    /// includes those that stay only for the pages that others need of them; see [`collect`](Self::collect).
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<GenerationId>> {
        let mut ids: Vec<GenerationId> = entries(&self.0.root)?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Removes every generation that neither `roots` nor a [`Generation`] or [`PendingGeneration`] alive in this
    /// process reaches, and says which. A header's table of generations decides what is reached, so a parent all of
    /// whose pages were overwritten goes. One process collects a store at a time.
    ///
    /// What is not a root is given up: it may stay for the pages that a root needs of it, without staying readable
    /// itself.
    ///
    /// # Errors
    /// A root cannot be loaded, in which case nothing is removed; or a directory cannot be removed.
    pub fn collect(&self, roots: &[GenerationId]) -> Result<Vec<GenerationId>> {
        let _gate = self.0.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut kept: HashSet<GenerationId> = HashSet::new();
        for root in roots {
            kept.extend(self.0.bring_to_life(*root)?.reach());
        }
        for generation in self.0.alive() {
            kept.extend(generation.reach());
        }
        let removed: Vec<_> = self.list()?.into_iter().filter(|id| !kept.contains(id)).collect();
        for id in &removed {
            self.0.remove(*id)?;
        }
        Ok(removed)
    }
}

impl Shared {
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Renames a complete directory into place. From the rename on, the generation is there.
    pub(crate) fn publish(&self, dir: &mut TempDir, id: GenerationId) -> Result<Generation> {
        let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        dir.rename(&self.root.join(id.to_string()))?;
        files::sync_dir(&self.root)?;
        self.bring_to_life(id)
    }

    /// Loads a generation and remembers that it is in use. The caller holds the gate.
    fn bring_to_life(&self, id: GenerationId) -> Result<Generation> {
        let generation = Generation::load(&self.root, id, Arc::clone(&self.data_files))?;
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|generation| generation.strong_count() > 0);
        live.push(generation.downgrade());
        Ok(generation)
    }

    fn alive(&self) -> Vec<Generation> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().filter_map(Generation::upgrade).collect()
    }

    /// Out of sight first: a crash half-way leaves a directory to sweep, not a generation that lacks files.
    fn remove(&self, id: GenerationId) -> Result<()> {
        let path = self.root.join(id.to_string());
        let doomed = self.root.join(format!("{TEMP_PREFIX}removed-{id}"));
        fs::rename(&path, &doomed).map_err(|source| Error::io("remove", &path, source))?;
        fs::remove_dir_all(&doomed).map_err(|source| Error::io("remove", &doomed, source))
    }
}

fn sweep(root: &Path) -> Result<()> {
    for name in entries(root)? {
        let path = root.join(&name);
        if name.starts_with(TEMP_PREFIX) && is_abandoned(&path)? {
            fs::remove_dir_all(&path).map_err(|source| Error::io("remove", &path, source))?;
        }
    }
    Ok(())
}

/// A lock dies with the process that holds it, so a directory without one has no writer.
fn is_abandoned(path: &Path) -> Result<bool> {
    let dir = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        dir => dir.map_err(|source| Error::io("open", path, source))?,
    };
    Ok(dir.try_lock().is_ok())
}

fn entries(root: &Path) -> Result<Vec<String>> {
    let error = |source| Error::io("list", root, source);
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(error)? {
        names.extend(entry.map_err(error)?.file_name().into_string().ok());
    }
    Ok(names)
}
