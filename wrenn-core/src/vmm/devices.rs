//! Device nodes for one VMM. The host's nodes belong to root, or to a group that other programs have too.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, mknod};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};

use crate::vmm::identity::{DIRECTORY, Identity};

pub(super) const KVM: &str = "/dev/kvm";

/// Moves the calling thread into a mount namespace of its own, in which `device` belongs to `owner` alone.
pub(super) fn own(device: &str, owner: &Identity) -> io::Result<()> {
    private_mounts()?;
    // The directory is there since the owner was reserved, and the VMM has no business in it.
    let place = Path::new(DIRECTORY);
    mount("tmpfs", place, "tmpfs", MountFlags::NOSUID, c"size=64k,mode=0700").map_err(at("mount a tmpfs"))?;
    offer(device, place, owner).map_err(at("give the VMM its devices"))
}

/// Moves the calling thread into a mount namespace whose mounts no other process sees.
pub(super) fn private_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(at("keep mounts private"))
}

/// Puts a node of the same device, made in `place`, over the host's. Where the host has none there is nothing to do.
pub(super) fn offer(device: &str, place: &Path, owner: &Identity) -> io::Result<()> {
    let number = match fs::metadata(device) {
        Ok(metadata) => metadata.rdev(),
        // Kernels before 6.1 have no device for userfaultfd. Where another device is missing, the VMM reports it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let node = place.join(device.rsplit('/').next().unwrap_or(device));
    mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
    give(&node, owner, 0o600)?;
    Ok(mount_bind(&node, device)?)
}

/// Gives a path to the owner. Only for paths that no other program can have made.
pub(super) fn give(path: &Path, owner: &Identity, mode: u32) -> io::Result<()> {
    chown(path, Some(owner.uid), Some(owner.gid))?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Names the step that failed, and keeps the kind of its error.
pub(super) fn at<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("could not {what}: {error}"))
    }
}
