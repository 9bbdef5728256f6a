//! A packet socket, whose closing nobody waits for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A packet socket. The kernel waits for all processors while one is closed, some 40 ms, so that is done on a thread of its
/// own.
#[derive(Debug)]
pub(crate) struct PacketSocket(Option<OwnedFd>);

impl PacketSocket {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(Some(socket))
    }

    pub(crate) fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(self.socket()?, packet)?)
    }

    pub(crate) fn socket(&self) -> io::Result<&OwnedFd> {
        self.0.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for PacketSocket {
    fn drop(&mut self) {
        let socket = self.0.take();
        // Where there can be no more threads, this one waits.
        std::thread::Builder::new().name("wrenn-net-close".to_owned()).spawn(move || drop(socket)).ok();
    }
}
