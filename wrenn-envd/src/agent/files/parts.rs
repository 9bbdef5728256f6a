//! The parts of a multipart body, read in constant memory.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Stream;
use multer::{Field, Multipart};

use crate::agent::api_error::ApiError;

/// A multipart body.
pub(super) struct Parts {
    inner: Multipart<'static>,
    unclaimed_bytes: Arc<AtomicUsize>,
}

impl Parts {
    pub(super) fn new(body: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static, boundary: String) -> Self {
        let unclaimed_bytes = Arc::<AtomicUsize>::default();
        let paced = Paced { body, unclaimed_bytes: unclaimed_bytes.clone(), has_given: false };
        Self { inner: Multipart::new(paced, boundary), unclaimed_bytes }
    }

    /// The next part; what is left of the former one is passed over.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, ApiError> {
        let field = self.inner.next_field().await.map_err(|error| malformed(&error))?;
        self.unclaimed_bytes.store(0, Ordering::Relaxed);
        Ok(field.map(|field| Part { field, unclaimed_bytes: self.unclaimed_bytes.clone() }))
    }

    /// Passes over all that is left.
    pub(super) async fn skip(&mut self) {
        while let Ok(Some(_)) = self.next().await {}
    }
}

/// One part.
pub(super) struct Part {
    field: Field<'static>,
    unclaimed_bytes: Arc<AtomicUsize>,
}

impl Part {
    pub(super) fn name(&self) -> Option<&str> {
        self.field.name()
    }

    pub(super) fn file_name(&self) -> Option<&str> {
        self.field.file_name()
    }

    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ApiError> {
        let chunk = self.field.chunk().await.map_err(|error| malformed(&error));
        self.unclaimed_bytes.store(0, Ordering::Relaxed);
        chunk
    }

    /// All of a part that is text of at most `bytes_max` bytes.
    pub(super) async fn text(mut self, bytes_max: usize) -> Result<String, ApiError> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            text.extend_from_slice(&chunk);
            if text.len() > bytes_max {
                return Err(ApiError::bad_request(format!("a part that is text is longer than {bytes_max} bytes")));
            }
        }
        String::from_utf8(text).map_err(|_| ApiError::bad_request("a part that is text is no UTF-8"))
    }
}

fn malformed(error: &multer::Error) -> ApiError {
    let mut message = format!("the multipart body: {error}");
    if let Some(source) = std::error::Error::source(error) {
        message += &format!(": {source}");
    }
    ApiError::bad_request(message)
}

/// A body that gives one piece at a time, and only so much before somebody claims something of it.
///
/// The parser takes in whatever is ready before it looks at any of it, and looks for the end of a part's head for ever.
struct Paced<S> {
    body: S,
    unclaimed_bytes: Arc<AtomicUsize>,
    has_given: bool,
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for Paced<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.has_given) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let piece = std::task::ready!(Pin::new(&mut self.body).poll_next(context));
        if let Some(Ok(piece)) = &piece {
            self.has_given = true;
            if self.unclaimed_bytes.fetch_add(piece.len(), Ordering::Relaxed) > UNCLAIMED_BYTES_MAX {
                let message = "there is no boundary, or a part's head is too long";
                return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::InvalidData, message))));
            }
        }
        Poll::Ready(piece)
    }
}

/// More than the largest piece, and than any sensible head of a part.
const UNCLAIMED_BYTES_MAX: usize = 2 << 20;
