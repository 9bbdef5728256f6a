//! The ioctls of taps.
#![expect(unsafe_code, reason = "ioctl and a zeroed ifreq")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tunsetpersist, libc::TUNSETPERSIST);
nix::ioctl_write_int_bad!(tunsetowner, libc::TUNSETOWNER);

/// Makes the tap `name` in the calling thread's namespace, and attaches `tun` as its only queue.
pub(crate) fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    // SAFETY: `ifreq` is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "the tap's name is a constant that fits");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_le_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and `request` is an initialised `ifreq` that outlives the call.
    unsafe { tunsetiff(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Lets the tap outlive its queue, and the user `uid` open another.
pub(crate) fn leave_tap(queue: &OwnedFd, uid: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open; the argument is a number, of which the kernel takes the 32 bits of an id.
    unsafe { tunsetowner(queue.as_raw_fd(), uid.cast_signed()) }?;
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { tunsetpersist(queue.as_raw_fd(), 1) }?;
    Ok(())
}
