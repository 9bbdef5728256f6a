//! Descriptors that come with a message on a socket.
#![expect(unsafe_code, reason = "descriptors arrive as plain numbers")]

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};

use crate::error::{Error, Result};

/// Appends what waits on a socket to `message`, of which there are `bytes_max` at most, and to `descriptors`. Returns
/// how many bytes came: 0 at the end.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    message: &mut Vec<u8>,
    bytes_max: usize,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize> {
    let mut bytes = vec![0; bytes_max.saturating_sub(message.len())];
    // Room for as many as the kernel lets through at once: it installs what does not fit in part, and nobody would
    // close it.
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let received = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            received => break received.map_err(|errno| Error::kernel("recvmsg", errno))?,
        }
    };
    let count = received.bytes;
    for control in received.cmsgs().map_err(|errno| Error::kernel("recvmsg", errno))? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else has them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    message.extend(&bytes[..count]);
    Ok(count)
}

/// `SCM_MAX_FD`.
const DESCRIPTORS_MAX: usize = 253;
