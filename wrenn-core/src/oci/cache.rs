//! `<data_dir>/layers`: layers by their digest, shared by all images.
//!
//! ```text
//! layers/.lock-KEY        held by whoever makes the layer; KEY is its digest, or that of where it comes from
//! layers/.tmp-KEY/        in the making; swept by whoever takes its lock next
//! layers/DIGEST/          published by one rename; never changed
//! ```
//!
//! Cache::lock -> Cache::stage -> LayerWriter -> Staged::publish -> Layer

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::SeekFrom;

use crate::oci::digest::Digest;
use crate::oci::entry::Entry;
use crate::oci::error::OciError;
use crate::oci::index::{self, Totals};
use crate::oci::layer_writer::{DATA, INDEX, SMALL, ZEROS, block_crc};

/// The directory of layers.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    directory: PathBuf,
}

/// The right to make one layer.
#[derive(Debug)]
pub(super) struct Lock {
    key: String,
    _file: File,
}

/// A layer in the making, removed on drop. It keeps its lock until then.
#[derive(Debug)]
pub(super) struct Staged {
    directory: PathBuf,
    lock: Lock,
}

/// A whole layer. It stays readable where it is removed meanwhile.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) entries: Vec<Entry>,
    pub(super) totals: Totals,
    pub(super) data: File,
    pub(super) small: File,
}

impl Cache {
    /// Blocks, as everything here but [`lock`](Self::lock).
    pub(super) fn open(directory: &Path) -> Result<Self, OciError> {
        fs::create_dir_all(directory).map_err(OciError::io("create", directory))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// The layer of a digest, if there is one that is whole. One that is not is taken away.
    pub(super) fn layer(&self, digest: Digest) -> Result<Option<Layer>, OciError> {
        let directory = self.directory.join(digest.hex());
        match Layer::open(&directory, digest) {
            Ok(Some(layer)) => Ok(Some(layer)),
            Ok(None) => {
                tracing::warn!(path = %directory.display(), "a layer is damaged, and is made again");
                self.discard(&digest.hex())?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.discard(&digest.hex())?;
                Ok(None)
            }
            Err(error) => Err(OciError::io("read", &directory)(error)),
        }
    }

    /// The layer of a digest, if it is whole. Another stays as it is.
    pub(super) fn peek(&self, digest: Digest) -> Result<Option<Layer>, OciError> {
        let directory = self.directory.join(digest.hex());
        match Layer::open(&directory, digest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map_err(OciError::io("read", &directory)),
        }
    }

    /// Waits until nobody makes the layer of this key.
    ///
    /// # Cancel-Safety
    ///
    /// Nothing is left but the lock's file.
    pub(super) async fn lock(&self, key: String) -> Result<Lock, OciError> {
        loop {
            let (cache, wanted) = (self.clone(), key.clone());
            let locked = tokio::task::spawn_blocking(move || cache.try_lock(&wanted)).await;
            if let Some(lock) = locked.map_err(|error| OciError::io("lock", &self.directory)(error.into()))?? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn try_lock(&self, key: &str) -> Result<Option<Lock>, OciError> {
        let path = self.directory.join(format!("{LOCK}{key}"));
        let fault = || OciError::io("lock", &path);
        loop {
            let file = File::create(&path).map_err(fault())?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(fault()(error)),
            }
            // Whoever prunes removes it together with its layer.
            let same = |named: fs::Metadata| Ok(named.ino() == file.metadata()?.ino());
            match fs::metadata(&path).and_then(same) {
                Ok(true) => return Ok(Some(Lock { key: key.to_owned(), _file: file })),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(fault()(error)),
            }
        }
    }

    /// An empty directory for a layer. What a killed maker left goes first.
    pub(super) fn stage(&self, lock: Lock) -> Result<Staged, OciError> {
        let directory = self.directory.join(format!("{STAGED}{}", lock.key));
        remove(&directory).map_err(OciError::io("remove", &directory))?;
        fs::create_dir(&directory).map_err(OciError::io("create", &directory))?;
        Ok(Staged { directory, lock })
    }

    /// Publishes a layer under its digest. One that is there already stays.
    pub(super) fn publish(&self, staged: Staged, digest: Digest) -> Result<Layer, OciError> {
        let path = self.directory.join(digest.hex());
        for file in [DATA, SMALL, INDEX, "."] {
            let path = staged.directory.join(file);
            sync(&path).map_err(OciError::io("flush", &path))?;
        }
        match fs::rename(&staged.directory, &path) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOTEMPTY)) => {}
            Err(error) => return Err(OciError::io("publish", &path)(error)),
        }
        sync(&self.directory).map_err(OciError::io("flush", &self.directory))?;
        self.layer(digest)?.ok_or_else(|| OciError::io("find", &path)(io::ErrorKind::NotFound.into()))
    }

    /// Removes what makers that were killed have left.
    pub(super) fn sweep(&self) -> Result<(), OciError> {
        for name in self.names()? {
            if let Some(key) = name.strip_prefix(STAGED)
                && let Some(lock) = self.try_lock(key)?
            {
                drop(self.stage(lock)?);
            }
        }
        Ok(())
    }

    /// Removes the layers that are not in `keep` and that nobody makes. Returns their digests.
    pub(super) fn prune(&self, keep: &BTreeSet<Digest>) -> Result<Vec<Digest>, OciError> {
        self.sweep()?;
        let mut removed = Vec::new();
        for digest in self.digests()? {
            let hex = digest.hex();
            if keep.contains(&digest) {
                continue;
            }
            if let Some(lock) = self.try_lock(&hex)? {
                self.discard(&hex)?;
                let path = self.directory.join(format!("{LOCK}{hex}"));
                fs::remove_file(&path).map_err(OciError::io("remove", &path))?;
                drop(lock);
                removed.push(digest);
            }
        }
        Ok(removed)
    }

    pub(super) fn digests(&self) -> Result<Vec<Digest>, OciError> {
        Ok(self.names()?.iter().filter_map(|name| Digest::from_hex(name)).collect())
    }

    fn names(&self) -> Result<Vec<String>, OciError> {
        let entries = fs::read_dir(&self.directory).map_err(OciError::io("list", &self.directory))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Takes a layer away in one step, so that nobody finds half of one.
    fn discard(&self, hex: &str) -> Result<(), OciError> {
        let (path, gone) = (self.directory.join(hex), self.directory.join(format!("{STAGED}gone-{hex}")));
        let removed = remove(&gone).and_then(|()| match fs::rename(&path, &gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => moved.and_then(|()| remove(&gone)),
        });
        removed.map_err(OciError::io("remove", &path))
    }
}

impl Staged {
    pub(super) fn path(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Staged {
    /// Nothing is there any more where it was published.
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            let key = &self.lock.key;
            tracing::warn!(key, %error, "what is left of a layer is still there; the next one removes it");
        }
    }
}

impl Layer {
    /// `None` where an index is no index, or a file has another length.
    pub(super) fn open(directory: &Path, digest: Digest) -> io::Result<Option<Self>> {
        let (data, small) = (File::open(directory.join(DATA))?, File::open(directory.join(SMALL))?);
        let Some((entries, totals)) = index::decode(&fs::read(directory.join(INDEX))?) else { return Ok(None) };
        let whole = data.metadata()?.len() == totals.data_bytes && small.metadata()?.len() == totals.small_bytes;
        Ok(whole.then_some(Self { digest, entries, totals, data, small }))
    }

    /// Whether the content is what was written once.
    pub(super) fn verify(&self) -> io::Result<bool> {
        let mut small = Summing(0);
        io::copy(&mut &self.small, &mut small)?;
        Ok(small.0 == self.totals.small_crc && self.data_crc()? == self.totals.data_crc)
    }

    fn data_crc(&self) -> io::Result<u32> {
        let (mut crc, mut position) = (0, 0);
        let mut buffer = vec![0; 256 * ZEROS.len()];
        while position < self.totals.data_bytes {
            let Some((start, end)) = segment(&self.data, position, self.totals.data_bytes)? else { break };
            position = start - start % ZEROS.len() as u64;
            while position < end {
                let left = usize::try_from(self.totals.data_bytes - position).unwrap_or(usize::MAX);
                let count = buffer.len().min(left);
                self.data.read_exact_at(&mut buffer[..count], position)?;
                for (number, block) in (position / ZEROS.len() as u64..).zip(buffer[..count].chunks(ZEROS.len())) {
                    if block != ZEROS {
                        crc = block_crc(crc, number, block);
                    }
                }
                position += count as u64;
            }
        }
        Ok(crc)
    }
}

/// The first part of a file that is no hole, from `from` on and before `end`.
pub(super) fn segment(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) if start < end => start,
        Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stop = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, stop.min(end))))
}

struct Summing(u32);

impl io::Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = crc32c::crc32c_append(self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

const LOCK: &str = ".lock-";
const STAGED: &str = ".tmp-";
const LOCK_POLL: Duration = Duration::from_millis(100);
