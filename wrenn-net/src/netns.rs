//! A network namespace without a name, held by its descriptor.
//!
//! ```text
//!  a program with CAP_SYS_ADMIN   a thread of its own: unshare, or setns ─▶ work
//!  an ordinary user               a process that shares memory and descriptors with that thread, which waits for it:
//!                                 a user namespace, and in it the network's ─▶ work
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getegid, geteuid};

use crate::error::NetError;
use crate::sys;

/// A namespace that lives as long as this descriptor, a socket made in it, or a tap's queue that somebody holds.
#[derive(Debug)]
pub(crate) struct NetNs {
    net: OwnedFd,
    /// What gives this program the rights over the network namespace, where it has none of its own.
    user: Option<OwnedFd>,
}

impl NetNs {
    /// Makes a namespace and runs `set_up` inside it.
    ///
    /// A namespace belongs to a thread, so all of this happens on a thread of its own that ends here: no other code
    /// of the program ever runs in the wrong namespace.
    pub(crate) fn create<T: Send>(set_up: impl FnOnce() -> Result<T, NetError> + Send) -> Result<(Self, T), NetError> {
        on_own_thread(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok((Self { net: this("net")?, user: None }, set_up()?)),
            Err(Errno::EPERM) if !geteuid().is_root() => Self::create_as_user(set_up),
            Err(errno) => Err(NetError::at("make a network namespace")(errno.into())),
        })
    }

    /// A user may make a user namespace, and has every right in it, also that to make others.
    fn create_as_user<T>(set_up: impl FnOnce() -> Result<T, NetError>) -> Result<(Self, T), NetError> {
        let (user, group) = (geteuid(), getegid());
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
        let made = sys::in_a_process(flags, || {
            // The ids stay what they are, so that whatever is executed here has no rights.
            let map = || {
                fs::write("/proc/thread-self/setgroups", "deny")?;
                fs::write("/proc/thread-self/uid_map", format!("{user} {user} 1"))?;
                fs::write("/proc/thread-self/gid_map", format!("{group} {group} 1"))
            };
            map().map_err(NetError::UserNamespace)?;
            Ok((Self { net: this("net")?, user: Some(this("user")?) }, set_up()?))
        });
        made.map_err(NetError::UserNamespace)?
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    pub(crate) fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    /// Runs `work` on a thread that is inside the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let inside = || {
            setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        };
        on_own_thread(|| match &self.user {
            None => inside(),
            Some(user) => sys::in_a_process(CloneFlags::empty(), || {
                setns(user, CloneFlags::CLONE_NEWUSER)?;
                inside()
            })?,
        })
    }
}

/// The namespace of that kind that the calling thread is in.
fn this(kind: &str) -> Result<OwnedFd, NetError> {
    let opened = File::open(format!("/proc/thread-self/ns/{kind}"));
    opened.map(OwnedFd::from).map_err(NetError::at("open the network namespace"))
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
