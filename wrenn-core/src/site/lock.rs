//! Locks between programs. A program can look whether a lock is held without taking it.
//!
//! A lock is a write lock on an open file (`F_OFD_SETLK`): the kernel frees it when its holder ends, however that ends,
//! and tells others of it without their taking it (`F_OFD_GETLK`), which `flock` cannot.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};

/// A lock that the kernel frees when its holder ends, however it ends.
#[derive(Debug)]
pub(crate) struct FileLock(#[expect(dead_code, reason = "the lock is the open file's")] File);

/// The files of a directory, as locks.
#[derive(Debug, Clone)]
pub(crate) struct Locks(PathBuf);

impl Locks {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Takes the lock `name` if nobody has it.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<FileLock>> {
        let path = self.0.join(name);
        for _ in 0..REMOVALS_MAX {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(Error::io("open", &path))?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
                Ok(_) if is_still_at(&file, &path) => return Ok(Some(FileLock(file))),
                // The last holder removed the file after it was opened here and before it was locked. A new file has
                // the name.
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(errno) => return Err(Error::io("lock", &path)(errno.into())),
            }
        }
        Ok(None)
    }

    /// Takes the lock `name`, and waits for it for at most `patience`; `None` if it is still held then. Blocks.
    pub(crate) fn lock_within(&self, name: &str, patience: Duration) -> Result<Option<FileLock>> {
        let (began, mut pause) = (Instant::now(), POLL_MIN);
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(Some(lock));
            }
            if began.elapsed() >= patience {
                return Ok(None);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(POLL_MAX);
        }
    }

    /// Whether a program has the lock `name`. The lock is not taken, so no other program is refused it meanwhile.
    pub(crate) fn is_locked(&self, name: &str) -> Result<bool> {
        let path = self.0.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let mut found = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut found)).map_err(|e| Error::io("look at the lock", &path)(e.into()))?;
        Ok(found.l_type != UNLOCKED)
    }

    /// Removes a lock's file; the holder does it last, while it holds the lock.
    pub(crate) fn forget(&self, name: &str) {
        // A file that cannot be removed stays as an empty file, which the next holder locks.
        let _ = fs::remove_file(self.0.join(name));
    }
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let same = || Ok::<_, io::Error>((file.metadata()?.ino(), fs::metadata(path)?.ino()));
    same().is_ok_and(|(locked, named)| locked == named)
}

/// A write lock on all of a file, however long it becomes.
fn whole_file() -> libc::flock {
    libc::flock { l_type: WRITE_LOCK, l_whence: FROM_START, l_start: 0, l_len: 0, l_pid: 0 }
}

#[expect(clippy::cast_possible_truncation, reason = "the kernel's own constants, which are 0 to 2")]
const WRITE_LOCK: libc::c_short = libc::F_WRLCK as libc::c_short;
#[expect(clippy::cast_possible_truncation, reason = "the kernel's own constants, which are 0 to 2")]
const UNLOCKED: libc::c_short = libc::F_UNLCK as libc::c_short;
#[expect(clippy::cast_possible_truncation, reason = "the kernel's own constants, which are 0 to 2")]
const FROM_START: libc::c_short = libc::SEEK_SET as libc::c_short;

/// How often a holder may remove the file while it is being opened and locked here.
const REMOVALS_MAX: usize = 64;
const POLL_MIN: Duration = Duration::from_micros(500);
const POLL_MAX: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn locks() -> (tempfile::TempDir, Locks) {
        let dir = tempfile::tempdir().unwrap();
        let locks = Locks::new(dir.path().to_owned());
        (dir, locks)
    }

    #[test]
    fn a_lock_has_one_holder_and_is_free_after_it() {
        let (_dir, locks) = locks();
        let held = locks.try_lock("x").unwrap().unwrap();
        assert!(locks.try_lock("x").unwrap().is_none());
        assert!(locks.lock_within("x", Duration::from_millis(5)).unwrap().is_none());
        drop(held);
        assert!(locks.try_lock("x").unwrap().is_some());
    }

    #[test]
    fn a_look_takes_nothing_and_makes_no_file() {
        let (dir, locks) = locks();
        assert!(!locks.is_locked("x").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let held = locks.try_lock("x").unwrap().unwrap();
        assert!(locks.is_locked("x").unwrap());
        drop(held);
        assert!(!locks.is_locked("x").unwrap());
    }

    #[test]
    fn a_lock_whose_file_is_removed_again_and_again_has_one_holder() {
        let (_dir, locks) = locks();
        let inside = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        let lock = locks.lock_within("x", Duration::from_secs(30)).unwrap().unwrap();
                        assert!(!inside.swap(true, order), "two hold it");
                        inside.store(false, order);
                        locks.forget("x");
                        drop(lock);
                    }
                });
            }
        });
    }
}
