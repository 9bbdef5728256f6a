//! The user that a VMM runs as.

use std::os::unix::fs::MetadataExt;

use crate::vmm::shape::Acceleration;

/// The user and group that a VMM runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Identity {
    /// A user of this VMM alone, so that one VMM can neither trace nor signal another. `None` where the program has no
    /// right to change users.
    pub(crate) fn ephemeral(acceleration: Acceleration) -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            return None;
        }
        let id = EPHEMERAL_UID_MIN + rand::random::<u32>() % EPHEMERAL_UIDS;
        let kvm = std::fs::metadata("/dev/kvm").ok().filter(|_| acceleration == Acceleration::Kvm);
        // QEMU opens the device itself, by the rights of its group.
        Some(Self { uid: id, gid: kvm.map_or(id, |kvm| kvm.gid()) })
    }
}

/// Above the ids that Debian, systemd (to 1,879,048,191) and user namespaces hand out.
const EPHEMERAL_UID_MIN: u32 = 1_900_000_000;
const EPHEMERAL_UIDS: u32 = 1 << 24;
