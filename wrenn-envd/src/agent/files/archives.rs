//! `POST /files/unpack` and `GET /files/pack`: trees of files as tar archives.
//!
//! ```text
//!  POST /files/unpack -> decoded -> feed ==(pieces)==> unpacker, on a thread that may wait
//!  GET  /files/pack   <- body <=====(pieces)========== packer, on a thread that may wait
//! ```

use std::{
    io::{self, Read, Write},
    sync::Mutex,
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{Request, Response, StatusCode, body::Frame, body::Incoming};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::timeout,
};

use super::{
    encoding::Encoding,
    packer::Packer,
    query::Query,
    target::Target,
    unpacker,
    upload::{Contents, LINGER, decoded},
};
use crate::agent::{
    answer::{Body, empty},
    api_error::ApiError,
    disk::threads,
    settings::Settings,
};

/// Unpacks the archive that the body is, below the directory that the query names, as its user. An archive that breaks off, or
/// that is refused, leaves what came before.
pub(in crate::agent) async fn unpack(
    settings: &Mutex<Settings>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let target = Target::find(settings, Query::parse(request.uri().query().unwrap_or(""))?)?;
    let top = target.path()?;
    let (head, body) = request.into_parts();
    let contents = decoded(Encoding::of_body(&head.headers)?, body);
    let (sender, pieces) = channel(PIECES_MAX);
    let unpacked = threads::as_user(target.user, move || {
        unpacker::unpack(&top, Pieces { pieces, piece: Bytes::new(), is_over: false })
    });
    let (unpacked, ()) = tokio::join!(unpacked, feed(contents, sender));
    unpacked.map(|()| empty(StatusCode::NO_CONTENT))
}

/// Sends a body's pieces to who reads them, and `None` at its end.
async fn feed(mut contents: Contents, pieces: Sender<io::Result<Option<Bytes>>>) {
    loop {
        let piece = match timeout(STALL_MAX, contents.next()).await {
            Ok(piece) => piece.transpose(),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came of the body for a minute")),
        };
        let is_last = !matches!(piece, Ok(Some(_)));
        if pieces.send(piece).await.is_err() {
            // It was refused. A client that is still sending would not hear of that.
            let _ = timeout(LINGER, contents.try_for_each(|_| async { Ok(()) })).await;
            return;
        }
        if is_last {
            return;
        }
    }
}

/// Answers with an archive of what the path of the query leads to: all that is in a directory, or a file. An error later on
/// breaks the answer off.
pub(in crate::agent) async fn pack(
    settings: &Mutex<Settings>,
    request: &Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let target = Target::find(settings, Query::parse(request.uri().query().unwrap_or(""))?)?;
    let (top, user) = (target.path()?, target.user);
    let packer = threads::as_user(user.clone(), move || Packer::open(&top)).await?;
    let (sender, pieces) = channel::<io::Result<Bytes>>(PIECES_MAX);
    tokio::spawn(async move {
        let out = Sink(sender.clone());
        if let Err(error) = threads::as_user(user, move || packer.pack(out)).await {
            // Where nobody reads, nobody hears of it.
            let _ = sender.send(Err(error)).await;
        }
    });
    let pieces = stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) });
    Ok(Response::new(StreamBody::new(pieces.map_ok(Frame::data).map_err(Into::into)).boxed_unsync()))
}

/// A body, for a thread that waits for its pieces.
struct Pieces {
    pieces: Receiver<io::Result<Option<Bytes>>>,
    piece: Bytes,
    is_over: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Ok(Some(piece))) => self.piece = piece,
                Some(Ok(None)) => self.is_over = true,
                Some(Err(error)) => return Err(error),
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the body broke off")),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The body of an answer, for a thread that waits until its pieces are taken.
struct Sink(Sender<io::Result<Bytes>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many wait.
const PIECES_MAX: usize = 4;
const STALL_MAX: Duration = Duration::from_secs(60);
