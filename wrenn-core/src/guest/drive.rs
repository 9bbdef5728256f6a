//! A sandbox's writable drive, a file without a name.
//!
//! ```text
//!  create ─▶ copy_sparse (boot) or fill (restore) ─▶ the VMM has it ─▶ Machine::save_drive (stopped) ─▶ finish
//!                                                                   └▶ SavedDrive::of (stopped) ────┘
//! ```
//!
//! QEMU tells what the guest wrote, and copies it out as it was at the stop while the guest goes on. Firecracker tells
//! nothing. Then, and where it is not known of all that was written, a capture compares the drive with its parent, which
//! takes as long as reading all of it. Where the file system can clone files (XFS, btrfs), a guest that goes on does not
//! wait for that: the drive is cloned during the stop, in less than a millisecond, and the clone is compared afterwards.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use wrenn_snapshot::{Generation, Space, SpaceWriter};

use crate::error::{Error, Result};
use crate::guest::then::{DriveSaving, Then};
use crate::runtime::blocking;
use crate::site::Site;
use crate::site::step::Step;
use crate::unnamed::{clone, unnamed_file};
use crate::vmm::saved::SavingDrive;

/// Makes a drive without a name. The kernel frees it with its last descriptor.
pub(crate) fn create(site: &Arc<Site>) -> Result<File> {
    unnamed_file(site.data.path()).map_err(Error::io("make a drive in", site.data.path()))
}

/// Fills a drive with the contents that a generation has of it. It has its length already, and keeps it: a VMM that opens
/// it meanwhile asks for the length once, and never again.
pub(crate) async fn fill(site: &Arc<Site>, from: Generation, drive: &File) -> Result<()> {
    site.observer.at(Step::Drive)?;
    let drive = drive.try_clone().map_err(Error::io("open", site.data.path()))?;
    let path = site.data.path().to_owned();
    blocking("fill the drive", move || fill_zeros(&from, &drive, &path)).await?
}

fn fill_zeros(from: &Generation, drive: &File, path: &Path) -> Result<()> {
    Ok(from.reader(Space::Drive)?.copy_over_zeros(drive, path)?)
}

/// Copies a file with its holes.
pub(crate) fn copy_sparse(mut from: &File, mut to: &File) -> io::Result<()> {
    let len = i64::try_from(from.metadata()?.len()).map_err(io::Error::other)?;
    to.set_len(len.unsigned_abs())?;
    let mut at = 0;
    while at < len {
        let start = match lseek(from, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        at = lseek(from, start, Whence::SeekHole)?;
        from.seek(SeekFrom::Start(start.unsigned_abs()))?;
        to.seek(SeekFrom::Start(start.unsigned_abs()))?;
        io::copy(&mut from.take(at.abs_diff(start)), &mut to)?;
    }
    Ok(())
}

/// The contents of a drive at one instant, which are being written to a generation.
pub(crate) enum SavedDrive {
    /// All contents are written.
    Written(SpaceWriter),
    /// The contents are in a clone, which has to be compared and written yet.
    Cloned { clone: File, into: SpaceWriter },
    /// The VMM is copying them.
    Saving(SavingDrive),
}

impl SavedDrive {
    /// Saves the drive of a stopped guest. `directory` is on the drive's file system.
    pub(crate) async fn of(drive: Arc<File>, directory: PathBuf, mut into: SpaceWriter, then: Then) -> Result<Self> {
        let save = move || {
            if then == Then::GoOn
                && let Ok(clone) = clone(&drive, &directory)
            {
                return Ok(Self::Cloned { clone, into });
            }
            into.add_compared(&drive)?;
            Ok(Self::Written(into))
        };
        blocking("save the drive", save).await?
    }

    /// Writes what is not written yet. Blocks.
    pub(crate) fn finish(self) -> Result<SpaceWriter> {
        match self {
            Self::Written(into) => Ok(into),
            Self::Cloned { clone, mut into } => {
                into.add_compared(&clone)?;
                Ok(into)
            }
            Self::Saving(drive) => drive.finish(),
        }
    }

    /// How the contents are saved.
    pub(crate) fn saving(&self) -> DriveSaving {
        match self {
            Self::Written(_) => DriveSaving::Compared,
            Self::Cloned { .. } => DriveSaving::Cloned,
            Self::Saving(_) => DriveSaving::Told,
        }
    }
}

/// Shortens the next stop: cloning a drive makes the host write its cached pages out, so that the clone in the stop has
/// few left to write.
pub(crate) async fn write_ahead(drive: Arc<File>, directory: PathBuf) -> Result<()> {
    // A file system that cannot clone fails here as it does in the stop. A stop then reads the drive itself, so this
    // failure is not an error.
    blocking("write the drive out", move || drop(clone(&drive, &directory))).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use wrenn_snapshot::{LocalStore, PAGE_BYTES, PageRange};

    use super::*;

    /// QEMU measured a drive that was cut to nothing for an instant: its bitmap had another size than the drive that it saved.
    #[test]
    fn a_drive_that_is_filled_is_never_shorter_than_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut pending = LocalStore::open(dir.path()).unwrap().begin(None).unwrap();
        pending.write_dirty(Space::Drive, &[7; 2 * PAGE_BYTES], &[PageRange::new(0, 2)]).unwrap();
        let generation = pending.publish(b"").unwrap();
        let drive = File::from(memfd_create(c"drive", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        drive.set_len(2 * PAGE_BYTES as u64).unwrap();
        fcntl(&drive, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();

        fill_zeros(&generation, &drive, Path::new("the drive")).unwrap();

        let mut bytes = [0; 2 * PAGE_BYTES];
        drive.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 7));
    }
}
