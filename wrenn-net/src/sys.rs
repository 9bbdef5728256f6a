//! The one ioctl that makes a tap.
#![expect(unsafe_code, reason = "ioctl and a zeroed ifreq")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);

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
