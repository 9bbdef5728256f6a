//! The files that clients send for their builds, as archives, each under its hash.
//!
//! ```text
//!  build-files/OWNER/HASH          an archive that is whole
//!  build-files/OWNER/.new-…        one that comes
//!  build-files/unpacked-…          what a build that goes on has unpacked
//! ```

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::service::error::ServiceError;

/// The archives of all keys.
#[derive(Debug)]
pub(in crate::service) struct Files {
    root: PathBuf,
    /// By owner, the bytes that are on their way.
    coming: Mutex<HashMap<String, u64>>,
}

/// A directory that is removed when this is dropped. It may have a hundred thousand files, so nobody's asynchronous work removes
/// them.
#[derive(Debug)]
pub(in crate::service) struct WorkDir(Option<TempDir>);

impl WorkDir {
    pub(in crate::service) fn path(&self) -> &Path {
        self.0.as_ref().map_or_else(|| Path::new(""), TempDir::path)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let (Some(directory), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(directory));
        }
    }
}

/// Whether a text can be the hash of files.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

impl Files {
    pub(in crate::service) fn new(root: PathBuf) -> Self {
        Self { root, coming: Mutex::default() }
    }

    /// Removes what an earlier server has left half-done, and what nobody has used for long. Blocks.
    pub(in crate::service) fn sweep(&self, is_first: bool) {
        let oldest = SystemTime::now().checked_sub(UNUSED_MAX).unwrap_or(SystemTime::UNIX_EPOCH);
        for directory in entries(&self.root) {
            let is_unpacked = name_of(&directory).starts_with(UNPACKED);
            if is_unpacked && is_first {
                std::fs::remove_dir_all(&directory).ok();
            }
            if is_unpacked {
                continue;
            }
            for file in entries(&directory) {
                let is_old = file.metadata().and_then(|file| file.modified()).is_ok_and(|at| at < oldest);
                if is_old || is_first && name_of(&file).starts_with(NEW) {
                    std::fs::remove_file(&file).ok();
                }
            }
            // It fails where there is something in it.
            std::fs::remove_dir(&directory).ok();
        }
    }

    /// Whether the files of a hash are there. They count as used.
    pub(in crate::service) fn is_there(&self, owner: &str, hash: &str) -> bool {
        self.open(owner, hash).is_ok_and(|file| file.set_modified(SystemTime::now()).is_ok())
    }

    /// The archive of a hash.
    pub(in crate::service) fn open(&self, owner: &str, hash: &str) -> io::Result<File> {
        if !is_hash(hash) {
            return Err(io::ErrorKind::NotFound.into());
        }
        File::options().read(true).write(true).open(self.of(owner).join(hash))
    }

    /// A directory to unpack into, for the server's user alone.
    pub(in crate::service) fn work_dir(&self) -> io::Result<WorkDir> {
        make(&self.root)?;
        Ok(WorkDir(Some(tempfile::Builder::new().prefix(UNPACKED).tempdir_in(&self.root)?)))
    }

    /// Takes an archive of `len` bytes, which is there whole afterwards, or not at all.
    ///
    /// # Errors
    /// [`ServiceError::UploadTooLarge`], [`ServiceError::TooSlow`] where nothing comes for a while,
    /// [`ServiceError::BadBuild`] where another number of bytes comes, and [`ServiceError::Disk`].
    pub(in crate::service) async fn receive<E>(
        &self,
        owner: &str,
        hash: &str,
        len: u64,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), ServiceError> {
        let directory = self.of(owner);
        let _coming = self.reserve(owner, len)?;
        make(&self.root)?;
        make(&directory)?;
        self.make_room(owner, len);
        let (file, path) = tempfile::Builder::new().prefix(NEW).tempfile_in(&directory)?.into_parts();
        let mut file = tokio::fs::File::from_std(file);
        let (mut bytes, mut left) = (pin!(bytes), len);
        loop {
            let piece = timeout(PIECE_MAX, bytes.next()).await.map_err(|_elapsed| ServiceError::TooSlow)?;
            let Some(piece) = piece else { break };
            let piece = piece.map_err(|_| ServiceError::BadBuild { why: "the upload was cut off".to_owned() })?;
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| another_length(len))?;
            file.write_all(&piece).await?;
        }
        if left != 0 {
            return Err(another_length(len));
        }
        file.sync_all().await?;
        path.persist(directory.join(hash)).map_err(|failed| failed.error)?;
        tokio::task::spawn_blocking(move || File::open(directory)?.sync_all()).await??;
        Ok(())
    }

    /// Takes `len` bytes of what an owner may send at once.
    fn reserve<'a>(&'a self, owner: &str, len: u64) -> Result<Coming<'a>, ServiceError> {
        if len > FILE_BYTES_MAX {
            return Err(ServiceError::UploadTooLarge { max: FILE_BYTES_MAX });
        }
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let of_owner = coming.entry(owner.to_owned()).or_default();
        if of_owner.saturating_add(len) > OWNER_BYTES_MAX {
            return Err(ServiceError::UploadTooLarge { max: OWNER_BYTES_MAX });
        }
        *of_owner += len;
        drop(coming);
        Ok(Coming { all: &self.coming, owner: owner.to_owned(), len })
    }

    /// Removes what an owner has not used for the longest, until `len` more is no more than the owner may have.
    fn make_room(&self, owner: &str, len: u64) {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries(&self.of(owner))
            .into_iter()
            .filter(|path| is_hash(name_of(path)))
            .filter_map(|path| {
                let metadata = path.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), path))
            })
            .collect();
        files.sort();
        let mut all = files.iter().map(|(_, len, _)| len).sum::<u64>();
        for (_, bytes, path) in files {
            if all.saturating_add(len) <= OWNER_BYTES_MAX {
                break;
            }
            std::fs::remove_file(path).ok();
            all -= bytes;
        }
    }

    /// An owner's name may be anything.
    fn of(&self, owner: &str) -> PathBuf {
        let digits: String = Sha256::digest(owner).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.root.join(digits)
    }
}

/// What is on its way, until this is dropped.
struct Coming<'a> {
    all: &'a Mutex<HashMap<String, u64>>,
    owner: String,
    len: u64,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(coming) = all.get_mut(&self.owner) {
            *coming -= self.len;
            if *coming == 0 {
                all.remove(&self.owner);
            }
        }
    }
}

fn another_length(len: u64) -> ServiceError {
    ServiceError::BadBuild { why: format!("the upload has another length than the {len} bytes that it said") }
}

fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

const NEW: &str = ".new-";
const UNPACKED: &str = "unpacked-";
const FILE_BYTES_MAX: u64 = 4 << 30;
const OWNER_BYTES_MAX: u64 = 16 << 30;
/// A week.
const UNUSED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// For the next piece.
const PIECE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    type Pieces = Vec<Result<Bytes, ()>>;

    async fn receive(files: &Files, owner: &str, hash: &str, len: u64, pieces: Pieces) -> Result<(), ServiceError> {
        files.receive(owner, hash, len, stream::iter(pieces)).await
    }

    #[tokio::test]
    async fn an_archive_is_there_whole_and_its_owners_alone_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Files::new(dir.path().join("files"));
        let (hash, piece) = ("a".repeat(64), |text: &'static str| Ok(Bytes::from_static(text.as_bytes())));
        assert!(!files.is_there("../ada", &hash));
        for (len, pieces) in [(3, vec![piece("ab")]), (1, vec![piece("ab")]), (2, vec![piece("a"), Err(())])] {
            let failed = receive(&files, "../ada", &hash, len, pieces).await;
            assert!(matches!(failed, Err(ServiceError::BadBuild { .. })), "{failed:?}");
            assert!(!files.is_there("../ada", &hash));
        }
        let large = receive(&files, "../ada", &hash, FILE_BYTES_MAX + 1, vec![]).await;
        assert!(matches!(large, Err(ServiceError::UploadTooLarge { .. })), "{large:?}");
        receive(&files, "../ada", &hash, 2, vec![piece("a"), piece("b")]).await.expect("received");
        assert!(files.is_there("../ada", &hash) && !files.is_there("eve", &hash));
        assert!(!files.is_there("../ada", "../../secret"));
        let left: Vec<_> = entries(&files.of("../ada"));
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(files.coming.lock().expect("whole").is_empty());
        files.sweep(true);
        assert!(files.is_there("../ada", &hash));
        let old = SystemTime::now() - UNUSED_MAX - Duration::from_secs(60);
        files.open("../ada", &hash).and_then(|file| file.set_modified(old)).expect("set");
        files.sweep(false);
        assert!(!files.is_there("../ada", &hash));
    }
}
