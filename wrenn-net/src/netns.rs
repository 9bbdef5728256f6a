//! A network namespace without a name, held by its descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::NetError;

/// A namespace that lives as long as this descriptor, a socket made in it, or a tap's queue that somebody holds.
#[derive(Debug)]
pub(crate) struct NetNs(OwnedFd);

impl NetNs {
    /// Makes a namespace and runs `set_up` inside it.
    ///
    /// A namespace belongs to a thread, so all of this happens on a thread of its own that ends here: no other code
    /// of the program ever runs in the wrong namespace.
    pub(crate) fn create<T: Send>(set_up: impl FnOnce() -> Result<T, NetError> + Send) -> Result<(Self, T), NetError> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| NetError::at("make a network namespace")(e.into()))?;
            let fd = File::open("/proc/thread-self/ns/net").map_err(NetError::at("open the network namespace"))?;
            Ok((Self(fd.into()), set_up()?))
        })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` on a thread that is inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
