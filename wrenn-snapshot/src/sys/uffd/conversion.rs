//! [`Uffd`] from that of the `userfaultfd` crate, and back.
#![expect(unsafe_code, reason = "the crate takes and gives its descriptor as a number")]

use std::{
    mem::ManuallyDrop,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
};

use super::Uffd;

/// Takes the descriptor of a program that uses the `userfaultfd` crate. Its builder has made the first call already, so
/// the memory is [adopted](crate::adopt), not [armed](crate::arm).
///
/// ```
/// use std::os::fd::AsFd;
///
/// use userfaultfd::UffdBuilder;
/// use wrenn_snapshot::{
///     ByteSource, OnceResident, PAGE_BYTES, PageServer, Populate, Region, ServeOptions, StopHandle, Tracking, adopt,
/// };
///
/// let memory = memmap2::MmapMut::map_anon(4 * PAGE_BYTES)?;
/// let region = Region::new(memory.as_ptr() as u64, memory.len() as u64, 0);
/// // For root, or with vm.unprivileged_userfaultfd=1 and no /dev/userfaultfd.
/// let Ok(theirs) = UffdBuilder::new().close_on_exec(true).user_mode_only(false).create() else { return Ok(()) };
/// adopt(theirs.as_fd(), &[region], Tracking::Untracked)?;
///
/// let source = Box::new(ByteSource::new(vec![42; 4 * PAGE_BYTES])?);
/// let options = ServeOptions {
///     tracking: Tracking::Untracked,
///     populate: Populate::InBackground { bytes_per_second: 1 << 30 },
///     once_resident: OnceResident::End,
///     ..ServeOptions::default()
/// };
/// let end = PageServer::new(theirs, vec![region], source, options)?.serve(&StopHandle::new()?);
/// assert_eq!(memory[3 * PAGE_BYTES], 42);
///
/// let theirs = userfaultfd::Uffd::from(end.uffd);
/// theirs.unregister(memory.as_ptr().cast_mut().cast(), memory.len())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl From<userfaultfd::Uffd> for Uffd {
    fn from(theirs: userfaultfd::Uffd) -> Self {
        // Its `into_raw_fd` of version 0.9 closes the descriptor whose number it gives: it is dropped with it.
        let theirs = ManuallyDrop::new(theirs);
        // SAFETY: the descriptor is open, and its owner, which is not dropped, is used no more.
        Self(unsafe { OwnedFd::from_raw_fd(theirs.as_raw_fd()) })
    }
}

/// Gives the descriptor to a program that uses the `userfaultfd` crate, for what that does besides. It is non-blocking if a
/// [`PageServer`](crate::PageServer) had it.
impl From<Uffd> for userfaultfd::Uffd {
    fn from(ours: Uffd) -> Self {
        // SAFETY: the descriptor is open, and nobody else has it: it was owned.
        unsafe { Self::from_raw_fd(ours.0.into_raw_fd()) }
    }
}
