//! A connection to a port of the guest.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::AbortOnDropHandle;

use crate::agent::activity::Activity;
use crate::agent::client::AgentClient;
use crate::patience::patient;

/// A connection to a TCP port of the guest: see [`Sandbox::connect`](crate::Sandbox::connect). It keeps the sandbox
/// alive.
///
/// When the sandbox is paused or ends, wrenn closes the connection: reads and writes fail with
/// [`io::ErrorKind::ConnectionAborted`], and so do those that wait at that moment. After a resume, connect again.
///
/// A read fails with [`io::ErrorKind::TimedOut`] within two minutes after the guest's network went down.
/// [`tokio::io::split`] makes a reader and a writer of the connection.
///
/// ```no_run
/// # type Demo = Result<(), Box<dyn std::error::Error>>;
/// # async fn demo(sandbox: &wrenn_core::Sandbox, mut client: tokio::net::TcpStream) -> Demo {
/// let mut server = sandbox.connect(8000).await?;
/// tokio::io::copy_bidirectional(&mut client, &mut server).await?;
/// # Ok(()) }
/// ```
pub struct PortStream {
    /// `None` once the sandbox is over.
    socket: Arc<Mutex<Option<TcpStream>>>,
    /// The reader and the writer may be two tasks, and each is to be woken by the end.
    over_for_reader: Pin<Box<WaitForCancellationFutureOwned>>,
    over_for_writer: Pin<Box<WaitForCancellationFutureOwned>>,
    activity: Activity,
    /// Closes the socket at the sandbox's end even if nobody reads or writes, since an open socket keeps the sandbox's
    /// network.
    _closer: AbortOnDropHandle<()>,
    _sandbox: Box<dyn Send + Sync>,
}

impl PortStream {
    /// Connects to a port of a guest. The connection keeps `kept`.
    pub(crate) async fn open(agent: &AgentClient, port: u16, kept: impl Send + Sync + 'static) -> io::Result<Self> {
        let socket = timeout(patient(CONNECT_MAX), agent.dial(port)).await??;
        // Small writes are sent at once: whoever relays a protocol cannot tell whether more follows.
        socket.set_nodelay(true)?;
        Ok(Self::new(socket, agent.closed(), agent.activity().clone(), kept))
    }

    /// Makes a connection of `socket` that is closed when `over` is cancelled. The connection keeps `sandbox`.
    fn new(
        socket: TcpStream,
        over: CancellationToken,
        activity: Activity,
        sandbox: impl Send + Sync + 'static,
    ) -> Self {
        let socket = Arc::new(Mutex::new(Some(socket)));
        let (over_for_reader, over_for_writer) =
            (Box::pin(over.clone().cancelled_owned()), Box::pin(over.clone().cancelled_owned()));
        let closing = Arc::clone(&socket);
        let closer = AbortOnDropHandle::new(tokio::spawn(async move {
            over.cancelled().await;
            if let Some(socket) = lock(&closing).take() {
                reset(socket);
            }
        }));
        Self { socket, over_for_reader, over_for_writer, activity, _closer: closer, _sandbox: Box::new(sandbox) }
    }

    /// Does `write` with the socket, and fails when the sandbox ends before it is done.
    fn poll_write_with<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut socket = lock(&self.socket);
        let Some(stream) = socket.as_mut() else { return Poll::Ready(Err(over())) };
        match write(Pin::new(stream), context) {
            Poll::Ready(done) => {
                self.activity.touch();
                Poll::Ready(done)
            }
            Poll::Pending => self.over_for_writer.as_mut().poll(context).map(|()| Err(over())),
        }
    }
}

/// Closes a socket whose guest is gone. It does not wait for the other end, since that would keep the sandbox's
/// network.
fn reset(socket: TcpStream) {
    // Where this option cannot be set, the kernel closes the socket after a while.
    let _ = setsockopt(&socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 });
}

fn lock(socket: &Mutex<Option<TcpStream>>) -> MutexGuard<'_, Option<TcpStream>> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the sandbox was paused, or has ended")
}

impl std::fmt::Debug for PortStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortStream").field("socket", &*lock(&self.socket)).finish_non_exhaustive()
    }
}

impl AsyncRead for PortStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut socket = lock(&this.socket);
        let Some(stream) = socket.as_mut() else { return Poll::Ready(Err(over())) };
        match Pin::new(stream).poll_read(context, buf) {
            Poll::Ready(read) => {
                this.activity.touch();
                Poll::Ready(read)
            }
            Poll::Pending => this.over_for_reader.as_mut().poll(context).map(|()| Err(over())),
        }
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |stream, context| stream.poll_write(context, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(context, |stream, context| stream.poll_write_vectored(context, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_with(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_with(context, |stream, context| stream.poll_shutdown(context))
    }
}

/// A guest that is not up, or that has a firewall, does not answer a connection at all.
const CONNECT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (TcpStream, PortStream, CancellationToken, Activity) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (guest, _) = listener.accept().await.unwrap();
        let (over, activity) = (CancellationToken::new(), Activity::new());
        (guest, PortStream::new(socket, over.clone(), activity.clone(), ()), over, activity)
    }

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), work).await.expect("it does not wait for ever")
    }

    #[tokio::test]
    async fn whoever_reads_and_whoever_writes_is_told_of_the_end() {
        let (_guest, stream, over, _) = connected().await;
        let (mut reader, mut writer) = split(stream);
        let reads = tokio::spawn(async move { reader.read_u8().await });
        // Nobody reads it: at some point the socket takes no more.
        let writes = tokio::spawn(async move { writer.write_all(&vec![0; 64 << 20]).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!reads.is_finished() && !writes.is_finished());
        over.cancel();
        let kinds = [soon(reads).await.unwrap().unwrap_err().kind(), soon(writes).await.unwrap().unwrap_err().kind()];
        assert_eq!(kinds, [io::ErrorKind::ConnectionAborted; 2]);
    }

    #[tokio::test]
    async fn one_that_nobody_uses_is_closed_too_and_stays_so() {
        let (mut guest, mut stream, over, _) = connected().await;
        over.cancel();
        let closed = soon(guest.read_u8()).await.unwrap_err().kind();
        assert!(matches!(closed, io::ErrorKind::ConnectionReset), "{closed:?}");
        for _ in 0..2 {
            assert_eq!(soon(stream.read_u8()).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
            assert_eq!(soon(stream.write_u8(1)).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_are_use() {
        let (mut guest, mut stream, _over, activity) = connected().await;
        let before = activity.last_used();
        tokio::time::sleep(Duration::from_millis(5)).await;
        guest.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        soon(stream.read_exact(&mut read)).await.unwrap();
        assert!(activity.last_used() > before && &read == b"hello");
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        soon(guest.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"bye");
        drop(guest);
        assert_eq!(soon(stream.read(&mut [0; 1])).await.unwrap(), 0);
    }
}
