//! The standard input of a process.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt as _;
use tokio::io::AsyncWrite;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::agent::error::AgentError;
use crate::agent::process::InputKind;
use crate::error::{Error, Result};
use crate::exec::collect::is_closed;
use crate::exec::event::RUN;
use crate::process::link::Link;

/// The standard input of a [`Child`](crate::Child), or of its terminal. It keeps the sandbox alive.
///
/// A write waits until what was written before it is in the guest's pipe, whose capacity the guest's kernel sets (64
/// KiB). Once the process has ended or has closed its input, writes fail with [`io::ErrorKind::BrokenPipe`].
/// [`shutdown`](tokio::io::AsyncWriteExt::shutdown) closes a pipe, and so does dropping the `ChildStdin`; a terminal
/// stays open.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncWriteExt;
///
/// let mut child = sandbox.command("sort").stdin_piped().spawn().await?;
/// let mut stdin = child.take_stdin().expect("it is piped");
/// stdin.write_all(b"b\na\n").await?;
/// stdin.shutdown().await?;
/// assert_eq!(child.wait_with_output().await?.stdout_utf8(), "a\nb\n");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ChildStdin {
    link: Arc<Link>,
    pid: u32,
    kind: InputKind,
    /// The piece that is under way. A task sends it, since callers are not obliged to flush.
    sending: Option<JoinHandle<Result<()>>>,
    closed: bool,
}

impl ChildStdin {
    pub(super) fn new(link: Arc<Link>, pid: u32, kind: InputKind) -> Self {
        Self { link, pid, kind, sending: None, closed: false }
    }

    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = ready!(sending.poll_unpin(context));
        self.sending = None;
        Poll::Ready(sent.map_err(io::Error::other)?.map_err(into_io))
    }

    fn send(&self, bytes: Bytes) -> JoinHandle<Result<()>> {
        let (sandbox, pid, kind) = (self.link.sandbox(), self.pid, self.kind);
        tokio::spawn(async move {
            let send = async { sandbox.agent().send_input(pid, kind, bytes).await.map_err(Error::agent(WRITE)) };
            sandbox.while_running(RUN, send).await
        })
    }

    /// Closes the input after the piece that is under way.
    fn close(&mut self) -> Option<impl Future<Output = Result<()>> + Send + 'static> {
        if std::mem::replace(&mut self.closed, true) || self.kind == InputKind::Terminal {
            return None;
        }
        let (sandbox, pid, sending) = (self.link.sandbox(), self.pid, self.sending.take());
        Some(async move {
            if let Some(sending) = sending {
                sending.await.map_err(|panic| Error::failed(WRITE)(panic.into()))??;
            }
            let close = async { sandbox.agent().close_stdin(pid).await.map_err(Error::agent(WRITE)) };
            sandbox.while_running(RUN, close).await
        })
    }
}

impl AsyncWrite for ChildStdin {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_sent(context))?;
        let piece = &buf[..buf.len().min(PIECE_BYTES_MAX)];
        if !piece.is_empty() {
            self.sending = Some(self.send(Bytes::copy_from_slice(piece)));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(close) = self.close() {
            self.sending = Some(tokio::spawn(close));
        }
        match ready!(self.poll_sent(context)) {
            // The process has ended, or has closed its input: there is nothing left to close.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Poll::Ready(Ok(())),
            closed => Poll::Ready(closed),
        }
    }
}

impl Drop for ChildStdin {
    fn drop(&mut self) {
        let (Some(close), Ok(runtime)) = (self.close(), Handle::try_current()) else { return };
        let pid = self.pid;
        runtime.spawn(async move {
            if let Err(error) = close.await {
                // The process may have ended before. A caller that waits for the process gets every other error there.
                tracing::debug!(pid, error = &error as &dyn std::error::Error, "a dropped input was not closed");
            }
        });
    }
}

fn into_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::Agent { source, .. } if is_closed(source) => io::ErrorKind::BrokenPipe,
        Error::Agent { source, .. } => AgentError::io_kind(source),
        Error::InvalidState { .. } | Error::VmEnded { .. } => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

const WRITE: &str = "write to a command";

/// The most that is sent at once.
const PIECE_BYTES_MAX: usize = 256 << 10;
