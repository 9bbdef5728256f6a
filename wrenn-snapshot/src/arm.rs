//! Preparing a guest's memory for a page server and for dirty tracking. The guest does not run before this is done.
//!
//! ```text
//!  a new descriptor ────────────────────── arm ──► handshake ─► register ─► protect ─► PageServer::new
//!  one whose VMM made the handshake ───── adopt ──────────────► register ─► protect ─► PageServer::new
//! ```

use std::os::fd::BorrowedFd;

use crate::{
    error::{Error, Result},
    options::Tracking,
    region::{Region, Regions},
    sys::uffd::{self, Features, Watched},
};

/// Makes the first call on a descriptor, and then registers and write-protects every region.
///
/// # Errors
/// The regions are not whole granules or overlap, the descriptor was armed before, or the kernel lacks a feature.
pub fn arm(uffd: BorrowedFd<'_>, regions: &[Region], features: Features) -> Result<()> {
    let regions = Regions::new(regions.to_vec())?;
    uffd::handshake(uffd, features)?;
    register(uffd, &regions, Watched::MissingAndWrites)
}

/// As [`arm`], and protects nothing: pages are protected as they are put in place. For memory that is a file, whose holes
/// tell which pages never were ([`DirtyTracker::of_file`](crate::DirtyTracker::of_file)).
///
/// Protecting what is not there costs a mark for each page: 8 MiB of page tables for 4 GiB, which take 20 ms to make and to
/// tear down.
///
/// # Errors
/// As [`arm`].
pub fn arm_file(uffd: BorrowedFd<'_>, regions: &[Region], features: Features) -> Result<()> {
    let regions = Regions::new(regions.to_vec())?;
    uffd::handshake(uffd, features)?;
    for region in regions.iter() {
        uffd::register(uffd, region.host_addr, region.len_bytes, Watched::MissingAndWrites)?;
    }
    Ok(())
}

/// As [`arm_file`], for writes alone: for memory that is a private mapping of a file which has all of it
/// ([`DirtyTracker::of_private`](crate::DirtyTracker::of_private)). A page that was written is the VMM's own, and no longer the
/// file's, so nothing has to be protected first.
///
/// # Errors
/// As [`arm`].
pub fn arm_private(uffd: BorrowedFd<'_>, region: &Region) -> Result<()> {
    let regions = Regions::new(vec![*region])?;
    uffd::handshake(uffd, Features::SERVE_AND_TRACK)?;
    for region in regions.iter() {
        uffd::register(uffd, region.host_addr, region.len_bytes, Watched::Writes)?;
    }
    Ok(())
}

/// Registers regions on a descriptor whose VMM has made the first call, and write-protects them if writes are tracked.
/// The VMM may have registered them too, for missing pages: Firecracker does.
///
/// [`Tracking::Async`] takes a VMM that asked for it by its features. [`Tracking::Sync`] takes one that did not.
///
/// # Errors
/// The regions are not whole granules, overlap or are not memory of the descriptor's process; the descriptor was not
/// armed before; or its features do not go with `tracking`.
pub fn adopt(uffd: BorrowedFd<'_>, regions: &[Region], tracking: Tracking) -> Result<()> {
    let regions = Regions::new(regions.to_vec())?;
    tracking.check(Features::of(uffd)?)?;
    match tracking {
        Tracking::Async | Tracking::Sync => register(uffd, &regions, Watched::MissingAndWrites),
        Tracking::Untracked => register(uffd, &regions, Watched::Missing),
    }
}

fn register(uffd: BorrowedFd<'_>, regions: &Regions, watched: Watched) -> Result<()> {
    for region in regions.iter() {
        uffd::register(uffd, region.host_addr, region.len_bytes, watched)?;
        if watched == Watched::MissingAndWrites {
            uffd::protect(uffd, region.host_addr, region.len_bytes)?;
        }
    }
    Ok(())
}

impl Tracking {
    /// Whether a descriptor with these features can do it.
    pub(crate) fn check(self, features: Option<Features>) -> Result<()> {
        let features = features.ok_or_else(|| Error::invalid("the descriptor has not had its first call"))?;
        match (self, features.mark_writes()) {
            (Self::Async, true) | (Self::Sync, false) | (Self::Untracked, _) => Ok(()),
            (Self::Async, false) => Err(Error::invalid("the descriptor does not track writes by itself")),
            (Self::Sync, true) => Err(Error::invalid("the descriptor tracks writes by itself, and tells nobody")),
        }
    }
}
