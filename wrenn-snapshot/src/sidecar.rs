//! Files beside those of a generation, that may come after it was published.
//!
//! ```text
//!  Sidecar::open ─┬─ read, open ─────────────────────────────────────────► what is there, or nothing
//!                 ├─ write ─┐
//!                 └─ make ──┴─► lock <name>.part ─► write, sync ─► rename ─► <name>, whole
//! ```
//!
//! A generation never changes, and nothing that it means is in its sidecars: each can be lost, and be made again from the
//! generation. So no manifest names them. They are gone with the generation.
//!
//! # Crash consistency
//! A file has its name once it is durable, so it is never torn. The lock of one that is being written dies with the
//! process; what it left is written over by the next one, or goes with the generation.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    damage::Damage,
    error::{Error, Result},
    format::manifest::is_blob_name,
    id::GenerationId,
    new_file::NewFile,
    reach::MANIFEST_FILE,
    root::{DirLock, Root},
};

/// A named file beside those of a generation, such as a hint or a cache: something that can be lost, and be made again
/// from the generation. While a handle lives, in whatever process, no collection removes the generation.
///
/// ```
/// use std::{io::Write, time::Duration};
///
/// use wrenn_snapshot::{Error, LocalStore};
///
/// let dir = tempfile::tempdir()?;
/// let store = LocalStore::open(dir.path())?;
/// let generation = store.begin(None)?.publish(b"")?;
///
/// let hint = generation.sidecar("hint")?;
/// assert_eq!(hint.read(1 << 20)?, None);
/// hint.write(b"read page 7 first")?;
/// assert_eq!(hint.read(1 << 20)?.as_deref(), Some(&b"read page 7 first"[..]));
///
/// // Whoever comes first makes it, and the others wait for that.
/// let cache = store.sidecar(generation.id(), "cache")?;
/// let file = cache.make(Duration::from_secs(60), |mut file| file.write_all(&[7; 4096]).map_err(Error::of_source))?;
/// assert_eq!(file.metadata()?.len(), 4096);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sidecar {
    root: Root,
    generation: GenerationId,
    name: String,
    _in_use: Arc<DirLock>,
}

/// A file that nobody else writes. It has no name that anybody reads yet.
struct Part {
    file: File,
    path: PathBuf,
}

impl Sidecar {
    /// That of a generation that is in the store.
    pub(crate) fn of(root: &Root, generation: GenerationId, name: &str) -> Result<Self> {
        if !is_blob_name(name) || name == MANIFEST_FILE {
            return Err(Error::invalid(format!("{name:?} cannot be a sidecar's name")));
        }
        let _gate = root.share_gate()?;
        let in_use = root.use_dir(&root.dir(generation))?.ok_or(Error::NotFound(generation))?;
        Ok(Self { root: root.clone(), generation, name: name.to_owned(), _in_use: Arc::new(in_use) })
    }

    /// The whole file, `None` if there is none.
    ///
    /// # Errors
    /// It is longer than `bytes_max`, or cannot be read.
    pub fn read(&self, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        match self.root.read_capped(&self.path(), bytes_max) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("read", &self.path(), source)),
            Ok(bytes) if bytes.len() as u64 > bytes_max => {
                let damage = Damage::Length { expected: bytes_max, actual: bytes.len() as u64 };
                Err(Error::corrupt(self.name.clone(), self.generation, damage))
            }
            Ok(bytes) => Ok(Some(bytes)),
        }
    }

    /// Opens the file for reading, `None` if there is none.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self) -> Result<Option<File>> {
        match self.root.disk.open(&self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(|source| Error::io("open", &self.path(), source)),
        }
    }

    /// Puts `bytes` in place of what there was, in one step. They are durable; after a power cut the old ones may be there
    /// all the same. Waits for one fsync, and for others who write the same file, for 10 s at most.
    ///
    /// # Errors
    /// They cannot be written, or another writer takes too long. What was there before is still there.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let deadline = Instant::now() + WRITE_PATIENCE;
        let part = loop {
            if let Some(part) = self.lock_part(deadline)? {
                break part;
            }
        };
        self.finish(part, |part| {
            let file = part.file.try_clone().map_err(|source| Error::io("write", &part.path, source))?;
            let mut file = NewFile::new(Arc::clone(&self.root.disk), file, part.path.clone());
            if bytes.is_empty() { Ok(()) } else { file.append(bytes) }
        })
    }

    /// Opens the file for reading, and makes it first if there is none: `make` writes it, into an empty file that only its
    /// owner may read unless `make` changes that. Of several who want it at once, in whatever process, one makes it and the
    /// others wait for that, each for `patience` at most.
    ///
    /// # Errors
    /// `make` failed, in which case there is no file and the next one who wants it tries again; it could not be made
    /// durable; or somebody else was making it for longer than `patience`.
    pub fn make(&self, patience: Duration, make: impl FnOnce(&File) -> Result<()>) -> Result<File> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(made) = self.open()? {
                return Ok(made);
            }
            let Some(part) = self.lock_part(deadline)? else { continue };
            // Whoever had the lock before may have made it.
            if let Some(made) = self.open()? {
                self.discard(&part);
                return Ok(made);
            }
            self.finish(part, |part| make(&part.file))?;
            return self.open()?.ok_or_else(|| Error::io("open", &self.path(), io::ErrorKind::NotFound.into()));
        }
    }

    fn path(&self) -> PathBuf {
        self.root.dir(self.generation).join(&self.name)
    }

    /// The file to write, empty and locked. `None` if somebody else has just finished or given up with that one.
    fn lock_part(&self, deadline: Instant) -> Result<Option<Part>> {
        let path = self.root.dir(self.generation).join(format!("{}.part", self.name));
        let io = |source| Error::io("write", &path, source);
        let file = self.root.disk.open_to_write(&path).map_err(io)?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::io("wait for another to write", &path, io::ErrorKind::TimedOut.into()));
                }
                Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
            }
        }
        let has_the_name = match self.root.disk.open(&path) {
            Ok(now) => now.metadata().map_err(io)?.ino() == file.metadata().map_err(io)?.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(io(source)),
        };
        if !has_the_name {
            return Ok(None);
        }
        // What a crash left.
        file.set_len(0).map_err(io)?;
        Ok(Some(Part { file, path }))
    }

    /// Writes the file, makes it durable, and gives it its name.
    fn finish(&self, part: Part, write: impl FnOnce(&Part) -> Result<()>) -> Result<()> {
        let finished = write(&part).and_then(|()| {
            self.root.disk.sync(&part.file).map_err(|source| Error::io("sync", &part.path, source))?;
            self.root.rename(&part.path, &self.path())
        });
        finished.inspect_err(|_| self.discard(&part))
    }

    /// Removes the file while it is locked. If that fails, the next one who writes writes over it.
    fn discard(&self, part: &Part) {
        let _ = self.root.disk.remove_file(&part.path);
    }
}

/// For what is written at once, so that whoever writes it has it for a moment.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(5);
