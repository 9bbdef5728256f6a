//! A TCP connection that is intercepted, under its TLS.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::egress::counters::Way;
use crate::egress::shared::Shared;

/// One of the two connections. Dropped before it was ended in order, it is reset.
pub(super) struct Line<S> {
    stream: S,
    /// What was read of it already.
    head: Bytes,
    guest: Option<Tally>,
    /// What has to pass before more is read or written, so that no more goes in a second than may.
    read_after: Option<Pin<Box<Sleep>>>,
    written_after: Option<Pin<Box<Sleep>>>,
}

/// What is counted of a guest's.
struct Tally {
    shared: Arc<Shared>,
    moved: Arc<AtomicU64>,
}

impl<S> Line<S> {
    /// A guest's, of which `head` was read. `moved` counts the bytes of both ways.
    pub(super) fn of_guest(stream: S, head: Vec<u8>, shared: Arc<Shared>, moved: Arc<AtomicU64>) -> Self {
        Self { guest: Some(Tally { shared, moved }), head: head.into(), ..Self::of_server(stream) }
    }

    pub(super) fn of_server(stream: S) -> Self {
        Self { stream, head: Bytes::new(), guest: None, read_after: None, written_after: None }
    }

    /// Counts what was carried, and returns what has to pass before more is.
    fn count(&self, way: Way, bytes: usize) -> Option<Pin<Box<Sleep>>> {
        let tally = self.guest.as_ref()?;
        tally.moved.fetch_add(bytes as u64, Relaxed);
        let wait = tally.shared.count(way, bytes);
        (!wait.is_zero()).then(|| Box::pin(sleep(wait)))
    }
}

/// Ready once `wait` is over.
fn poll_over(wait: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    if let Some(sleep) = wait {
        ready!(sleep.as_mut().poll(cx));
        *wait = None;
    }
    Poll::Ready(())
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(poll_over(&mut self.read_after, cx));
        let before = buf.filled().len();
        if self.head.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let len = self.head.len().min(buf.remaining());
            buf.put_slice(&self.head[..len]);
            self.head.advance(len);
        }
        self.read_after = self.count(Way::Out, buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Line<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(poll_over(&mut self.written_after, cx));
        let len = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written_after = self.count(Way::In, len);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is on its way still arrives.
        SockRef::from(&self.stream).set_linger(None)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
