//! An inotify instance that can be waited for.
#![expect(unsafe_code, reason = "the runtime has no safe way to wait for a descriptor; this module alone holds it")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    sync::Arc,
};

use nix::sys::inotify::{InitFlags, Inotify, InotifyEvent};
use tokio::io::{Interest, unix::AsyncFd};

/// An inotify instance; its descriptor is open for as long as this lives.
#[derive(Debug)]
pub(super) struct Instance(Inotify);

impl Instance {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?)))
    }

    pub(super) fn inner(&self) -> &Inotify {
        &self.0
    }
}

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// An instance's events, as they come.
#[derive(Debug)]
pub(super) struct Incoming(AsyncFd<Arc<Instance>>);

impl Incoming {
    pub(super) fn register(instance: Arc<Instance>) -> io::Result<Self> {
        // SAFETY: the descriptor is the instance's own: it is always the same, and open until the last `Arc` is dropped,
        // one of which the `AsyncFd` holds.
        Ok(Self(unsafe { AsyncFd::register_with_interest(instance, Interest::READABLE) }?))
    }

    /// The next events.
    ///
    /// # Cancel-Safety
    ///
    /// No event is lost when it is cancelled.
    pub(super) async fn read(&self) -> io::Result<Vec<InotifyEvent>> {
        self.0.async_io(Interest::READABLE, |instance| Ok(instance.0.read_events()?)).await
    }
}
