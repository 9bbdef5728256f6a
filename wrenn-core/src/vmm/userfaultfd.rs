//! Finds out what this host's kernel and this program's rights allow of userfaultfd, by trying it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use memmap2::MmapMut;
use wrenn_snapshot::{Features, Region, Tracking, adopt, arm_file, create_uffd};

use crate::error::BoxError;
use crate::vmm::inject::Via;

/// `/dev/userfaultfd`, where this host has it.
pub(super) struct Device(Option<File>);

impl Device {
    /// Opens the device.
    ///
    /// # Errors
    /// Neither this user nor an unprivileged one may make a userfaultfd; the text has the remedy.
    pub(super) fn open() -> io::Result<Self> {
        let error = match OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
            Ok(device) => return Ok(Self(Some(device))),
            Err(error) => error,
        };
        // A VMM runs without root's rights, so a userfaultfd that only root could make does not help it.
        let unprivileged = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
        if unprivileged.trim() == "1" {
            return Ok(Self(None));
        }
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "set vm.unprivileged_userfaultfd=1, or use Linux 6.1 or later",
            _ => "run as root, or give this user the device",
        };
        Err(io::Error::new(error.kind(), format!("/dev/userfaultfd cannot be opened ({error}): {remedy}")))
    }

    /// How a process that has inherited the device as `fd` makes its own.
    pub(super) fn via(&self, fd: RawFd) -> Via {
        self.0.as_ref().map_or(Via::Syscall, |_| Via::Device(fd))
    }

    pub(super) fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        self.0.as_ref().map(|device| device.try_clone().map(OwnedFd::from)).transpose()
    }

    /// Makes a userfaultfd of this process.
    pub(super) fn userfaultfd(&self) -> Result<OwnedFd, BoxError> {
        match &self.0 {
            Some(device) => Ok(crate::sys::new_userfaultfd(device)?),
            None => Ok(create_uffd()?.into()),
        }
    }
}

/// Whether missing pages are served.
pub(super) fn serves() -> Result<(), BoxError> {
    let uffd = Device::open()?.userfaultfd()?;
    let (_memory, region) = untouched()?;
    shake_hands(&uffd)?;
    Ok(adopt(uffd.as_fd(), &[region], Tracking::Untracked)?)
}

/// Makes the first call on a descriptor, and asks for no feature, since every kernel serves missing pages.
pub(super) fn shake_hands(uffd: &OwnedFd) -> wrenn_snapshot::Result<()> {
    arm_file(uffd.as_fd(), &[], Features::NONE)
}

/// Memory that nobody touches.
fn untouched() -> Result<(MmapMut, Region), BoxError> {
    const BYTES: usize = 4 * 4096;
    let memory = MmapMut::map_anon(BYTES)?;
    let region = Region::new(u64::try_from(memory.as_ptr().expose_provenance())?, u64::try_from(BYTES)?, 0);
    Ok((memory, region))
}
