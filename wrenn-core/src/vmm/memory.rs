//! A guest's RAM: a sealed memfd that wrenn owns and the VMM maps.
//!
//! wrenn does not map the memory. It reads it as a file, so whatever a VMM writes there, and whenever, cannot harm
//! wrenn.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

/// Guest memory, freed with its last descriptor.
#[derive(Debug)]
pub(crate) struct GuestMemory {
    fd: OwnedFd,
    len_bytes: usize,
}

impl GuestMemory {
    /// Makes `len_bytes` of zeros, of which no page takes memory until it is written.
    pub(crate) fn create(len_bytes: usize) -> io::Result<Self> {
        let memory = Self { fd: reserve(len_bytes)?, len_bytes };
        memory.seal()?;
        Ok(memory)
    }

    /// Seals the length: a VMM that could change it would change the shape of the snapshot.
    fn seal(&self) -> io::Result<()> {
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&self.fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(())
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Makes all of it zeros that take no memory. The page server is not asked for a page that is there already.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let len = i64::try_from(self.len_bytes).map_err(io::Error::other)?;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.fd, flags, 0, len)?)
    }
}

/// A generation's memory, once for all of its clones: a memfd that nobody can change any more, and of which each maps a
/// private copy.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    fd: OwnedFd,
    len_bytes: u64,
}

impl SharedMemory {
    /// Makes memory that `fill` writes, as a file, and seals it.
    pub(crate) fn filled<E>(fill: impl FnOnce(&File) -> Result<(), E>) -> io::Result<Result<Self, E>> {
        let fd = memfd_create(c"wrenn-shared-memory", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd);
        if let Err(error) = fill(&file) {
            return Ok(Err(error));
        }
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let len_bytes = file.metadata()?.len();
        Ok(Ok(Self { fd: file.into(), len_bytes }))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

fn reserve(len_bytes: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(c"wrenn-guest-memory", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    ftruncate(&fd, i64::try_from(len_bytes).map_err(io::Error::other)?)?;
    Ok(fd)
}
