//! What a client has sent for a process and the process has not taken yet.

use std::collections::VecDeque;
use std::future::pending;
use std::io;

use axum::body::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;
use wrenn_core::ChildStdin;

/// The input of a process, in the order in which it came.
pub(super) struct Input {
    waiting: VecDeque<Piece>,
    waiting_bytes: usize,
    writer: Writer,
    unsure_bytes: usize,
}

enum Piece {
    Bytes(Bytes),
    Close,
}

enum Writer {
    Idle(ChildStdin),
    Writing {
        work: BoxFuture<'static, (ChildStdin, io::Result<()>)>,
        bytes: usize,
    },
    /// Nobody reads what is written.
    Closed,
}

/// What has become of the input.
#[derive(Debug)]
pub(super) enum Fed {
    /// The process has a piece of it, or will never have it.
    Piece,
    /// All that was before the end was written, and the input is to be closed.
    Close,
    /// A piece was not written.
    Failed(io::Error),
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input").field("waiting_bytes", &self.waiting_bytes).finish_non_exhaustive()
    }
}

impl Input {
    pub(super) fn new(stdin: Option<ChildStdin>) -> Self {
        let writer = stdin.map_or(Writer::Closed, Writer::Idle);
        Self { waiting: VecDeque::new(), waiting_bytes: 0, writer, unsure_bytes: 0 }
    }

    /// Whether more may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.waiting_bytes < WAITING_BYTES_MAX && self.waiting.len() < WAITING_MAX
    }

    pub(super) fn push(&mut self, mut bytes: Bytes) {
        self.waiting_bytes += bytes.len();
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
            self.waiting.push_back(Piece::Bytes(piece));
        }
    }

    /// Has the input end after what was pushed.
    pub(super) fn close(&mut self) {
        self.waiting.push_back(Piece::Close);
    }

    /// Has an end that could not be told be told again.
    pub(super) fn close_again(&mut self) {
        self.waiting.push_front(Piece::Close);
    }

    /// How many bytes were under way when the sandbox was paused, which the process may have in part. They are told once.
    pub(super) fn take_unsure(&mut self) -> Option<usize> {
        Some(std::mem::take(&mut self.unsure_bytes)).filter(|bytes| *bytes > 0)
    }

    /// Writes the next piece. It waits where there is none.
    ///
    /// # Cancel-Safety
    /// Cancelling loses nothing.
    pub(super) async fn turn(&mut self) -> Fed {
        if !matches!(self.writer, Writer::Writing { .. }) {
            match self.waiting.pop_front() {
                Some(Piece::Bytes(bytes)) => self.begin(bytes),
                Some(Piece::Close) => return Fed::Close,
                None => return pending().await,
            }
        }
        let Writer::Writing { work, bytes } = &mut self.writer else { return Fed::Piece };
        let (stdin, written) = work.await;
        let bytes = *bytes;
        self.writer = Writer::Idle(stdin);
        match written {
            Ok(()) => Fed::Piece,
            // The process has ended, or takes no more: its end tells that.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.writer = Writer::Closed;
                Fed::Piece
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                self.unsure_bytes += bytes;
                Fed::Piece
            }
            Err(error) => Fed::Failed(error),
        }
    }

    fn begin(&mut self, piece: Bytes) {
        self.waiting_bytes -= piece.len();
        let bytes = piece.len();
        self.writer = match std::mem::replace(&mut self.writer, Writer::Closed) {
            Writer::Idle(mut stdin) => {
                let work = async move {
                    let written = async { stdin.write_all(&piece).await.and(stdin.flush().await) }.await;
                    (stdin, written)
                };
                Writer::Writing { work: work.boxed(), bytes }
            }
            other => other,
        };
    }
}

/// As much as one message has.
const WAITING_BYTES_MAX: usize = 1 << 20;
const WAITING_MAX: usize = 1024;
/// A pipe's room in a guest: what is larger is written in parts anyway.
const PIECE_BYTES_MAX: usize = 64 << 10;
