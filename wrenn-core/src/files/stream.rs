use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;
use tokio_util::sync::PollSender;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::connection::Answer;
use crate::agent::files::{FileRequest, PIECE_BYTES_MAX};
use crate::agent::progress::Piece;
use crate::error::{Error, Result};
use crate::sandbox::handle::Sandbox;

/// A file of the guest that is open for reading, made by [`Files::open`](crate::Files::open). It keeps the sandbox
/// alive.
///
/// # Errors
/// Each error has an [`Error`] inside. Its kind is [`io::ErrorKind::ConnectionAborted`] where the sandbox was paused or
/// has ended, and [`io::ErrorKind::TimedOut`] where the guest sends nothing for longer than
/// [`Files::timeout`](crate::Files::timeout). A read also fails where the file has become shorter since it was opened.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// let mut big = sandbox.files().open("big.tar").await?;
/// let mut copy = tokio::fs::File::create("/tmp/big.tar").await?;
/// tokio::io::copy(&mut big, &mut copy).await?;
/// # Ok(()) }
/// ```
pub struct FileReader(StreamReader<BoxStream<'static, io::Result<Bytes>>, Bytes>);

impl FileReader {
    pub(super) fn new(file: Answer, sandbox: Sandbox, patience: Duration) -> Self {
        let pieces = stream::try_unfold((file, sandbox), move |(mut file, sandbox)| async move {
            let next = async { sandbox.agent().next_piece(&mut file, patience).await.map_err(Error::file(READ)) };
            let piece = sandbox.while_running(READ, next).await.map_err(into_io)?;
            Ok(piece.map(|piece| (piece, (file, sandbox))))
        });
        Self(StreamReader::new(pieces.boxed()))
    }
}

impl std::fmt::Debug for FileReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileReader").finish_non_exhaustive()
    }
}

impl AsyncRead for FileReader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buf)
    }
}

impl AsyncBufRead for FileReader {
    fn poll_fill_buf(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().0).poll_fill_buf(context)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.0).consume(amount);
    }
}

/// A file of the guest that is open for writing, made by [`Files::create`](crate::Files::create). It keeps the sandbox
/// alive.
///
/// The guest writes the contents to a temporary file. [`shutdown`](tokio::io::AsyncWriteExt::shutdown) moves that file
/// to its place, and tells whether that succeeded. A writer that is dropped before that leaves the former file as it
/// was.
///
/// # Errors
/// Those of [`FileReader`]. The guest may refuse the file at any write.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncWriteExt;
///
/// let mut log = sandbox.files().create("numbers.txt").await?;
/// for number in 0..1000 {
///     log.write_all(format!("{number}\n").as_bytes()).await?;
/// }
/// log.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct FileWriter {
    pieces: PollSender<Piece>,
    answer: AbortOnDropHandle<Result<()>>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Writing,
    /// The end was sent.
    Ending,
    /// The answer was taken.
    Done,
}

impl FileWriter {
    /// Begins to write.
    pub(super) fn new(request: FileRequest, sandbox: Sandbox, patience: Duration) -> Self {
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        let answer = tokio::spawn(async move {
            let upload =
                async { sandbox.agent().upload(&request, received, patience).await.map_err(Error::file(WRITE)) };
            sandbox.while_running(WRITE, upload).await
        });
        // The guest discards an upload whose end was not sent, so a writer that is dropped need not wait for an answer.
        Self { pieces: PollSender::new(pieces), answer: AbortOnDropHandle::new(answer), state: State::Writing }
    }

    /// Waits for room for one more piece. Where the upload has failed it takes no more pieces, and its answer tells
    /// why.
    fn poll_send(&mut self, context: &mut Context<'_>, piece: impl FnOnce() -> Piece) -> Poll<io::Result<()>> {
        if ready!(self.pieces.poll_reserve(context)).is_ok() && self.pieces.send_item(piece()).is_ok() {
            return Poll::Ready(Ok(()));
        }
        let answer = ready!(self.poll_answer(context));
        Poll::Ready(answer.and_then(|()| Err(io::Error::from(io::ErrorKind::BrokenPipe))))
    }

    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == State::Done {
            return Poll::Ready(Err(io::Error::other("the file was shut down, or refused, before")));
        }
        let answer = ready!(self.answer.poll_unpin(context));
        self.state = State::Done;
        Poll::Ready(answer.map_err(io::Error::other)?.map_err(into_io))
    }
}

impl AsyncWrite for FileWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.state != State::Writing {
            return Poll::Ready(Err(io::Error::from(io::ErrorKind::BrokenPipe)));
        }
        let piece = &buf[..buf.len().min(PIECE_BYTES_MAX)];
        ready!(self.poll_send(context, || Piece::Data(Bytes::copy_from_slice(piece))))?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Each write hands its piece to the upload at once, so there is nothing left to send.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == State::Writing {
            ready!(self.poll_send(context, || Piece::End))?;
            self.state = State::Ending;
        }
        self.poll_answer(context)
    }
}

/// Makes an I/O error with `error` inside.
fn into_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::InvalidInput { .. } => io::ErrorKind::InvalidInput,
        Error::InvalidState { .. } | Error::VmEnded { .. } => io::ErrorKind::ConnectionAborted,
        Error::Agent { source, .. } => source.io_kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

const READ: &str = "read a file";
const WRITE: &str = "write a file";

/// How many pieces wait to be sent.
const PIECES_MAX: usize = 2;
