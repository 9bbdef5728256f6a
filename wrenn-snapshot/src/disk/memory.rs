//! A disk in memory: every file is a memfd, and so is every directory, to have something to lock.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, ErrorKind, IoSlice, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::disk::Disk;

/// Files of this process, gone with the last handle. Syncing them is nothing.
#[derive(Debug)]
pub(crate) struct MemoryDisk(Mutex<BTreeMap<PathBuf, File>>);

impl MemoryDisk {
    /// A disk with one empty directory.
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(BTreeMap::from([(root.to_owned(), nameless_file()?)]))))
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<PathBuf, File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let mut files = self.files();
        if !path.parent().is_some_and(|dir| files.contains_key(dir)) {
            return Err(ErrorKind::NotFound.into());
        }
        if files.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let file = nameless_file()?;
        files.insert(path.to_owned(), file.try_clone()?);
        Ok(file)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut files = self.files();
        if files.keys().any(|name| name.parent() == Some(path)) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        files.remove(path).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    /// Opened anew, so that its position and its lock are its own.
    fn open(&self, path: &Path) -> io::Result<File> {
        let files = self.files();
        let file = files.get(path).ok_or(ErrorKind::NotFound)?;
        File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = self.files();
        if !files.contains_key(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.create(path).map(drop)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        self.create(path)
    }

    fn open_to_write(&self, path: &Path) -> io::Result<File> {
        match self.create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let files = self.files();
        let file = files.get(path).ok_or(ErrorKind::NotFound)?;
        File::options().read(true).write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }

    fn write(&self, mut file: &File, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        file.write_vectored(pieces)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files();
        if files.keys().any(|path| path.parent() == Some(to)) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        let moved: Vec<PathBuf> = files.keys().filter(|path| path.starts_with(from)).cloned().collect();
        if moved.is_empty() {
            return Err(ErrorKind::NotFound.into());
        }
        for path in moved {
            let rest = path.strip_prefix(from).unwrap_or_else(|_| Path::new(""));
            let renamed = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
            if let Some(file) = files.remove(&path) {
                files.insert(renamed, file);
            }
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }
}

fn nameless_file() -> io::Result<File> {
    Ok(File::from(memfd_create(c"wrenn-snapshot", MFdFlags::MFD_CLOEXEC)?))
}
