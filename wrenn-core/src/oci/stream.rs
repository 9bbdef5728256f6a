//! Bytes from asynchronous work to blocking work, and an end to the latter.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

/// Reads what is sent. It ends after `left` bytes; that nothing comes before is an error.
pub(super) struct Received {
    from: mpsc::Receiver<Bytes>,
    current: Bytes,
    left: u64,
}

impl Received {
    pub(super) fn new(from: mpsc::Receiver<Bytes>, bytes: u64) -> Self {
        Self { from, current: Bytes::new(), left: bytes }
    }
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        while self.current.is_empty() {
            let given_up = || io::Error::new(io::ErrorKind::UnexpectedEof, "the download was given up");
            self.current = self.from.blocking_recv().ok_or_else(given_up)?;
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Ends blocking work when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(super) fn guard<R>(&self, inner: R) -> Stoppable<R> {
        Stoppable { inner, stopped: self.0.clone() }
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads until its [`Stop`] is dropped.
pub(super) struct Stoppable<R> {
    inner: R,
    stopped: Arc<AtomicBool>,
}

impl<R> Stoppable<R> {
    /// The same for another reader.
    pub(super) fn with<S>(&self, inner: S) -> Stoppable<S> {
        Stoppable { inner, stopped: self.stopped.clone() }
    }

    pub(super) fn check(&self) -> io::Result<()> {
        if self.stopped.load(Ordering::Relaxed) { Err(io::Error::other("the work was given up")) } else { Ok(()) }
    }
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}
