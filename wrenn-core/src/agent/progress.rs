//! The progress of a body that is being sent to the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::ClientBody;
use futures::{Stream, StreamExt as _, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::time::{sleep, sleep_until};

use crate::agent::activity::Activity;

/// A piece of an upload, or its end. An upload whose end was not sent has no effect.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    End,
}

/// Whether the guest takes what it is sent. Clones are of the same body.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    /// When the last piece was taken.
    taken: Activity,
    /// Whether all was taken so far, and the next piece is still to come.
    waits: Arc<AtomicBool>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { taken: Activity::new(), waits: Arc::default() }
    }

    /// Waits until the guest has taken nothing for `patience` although there was something to take.
    pub(super) async fn stalled(&self, patience: Duration) {
        loop {
            let end = self.taken.last_used() + patience;
            if self.waits.load(Ordering::Relaxed) {
                sleep(patience).await;
            } else if end.elapsed() > Duration::ZERO {
                return;
            } else {
                // `Activity` counts whole milliseconds.
                sleep_until(end + Duration::from_millis(1)).await;
            }
        }
    }

    /// The pieces as a body. Where the end does not come, the body breaks off with an error, so that the agent does not
    /// take a part for the whole.
    pub(super) fn body(
        &self,
        pieces: impl Stream<Item = Piece> + Send + Sync + 'static,
        activity: Activity,
    ) -> ClientBody {
        let abandoned = || ConnectError::canceled("the upload was abandoned");
        let progress = self.clone();
        let frames = stream::unfold(Some((Box::pin(pieces), progress, activity)), move |state| async move {
            let (mut pieces, progress, activity) = state?;
            progress.waits.store(true, Ordering::Relaxed);
            let piece = pieces.next().await;
            progress.waits.store(false, Ordering::Relaxed);
            progress.taken.touch();
            match piece {
                Some(Piece::Data(bytes)) => {
                    activity.touch();
                    Some((Ok(Frame::data(bytes)), Some((pieces, progress, activity))))
                }
                Some(Piece::End) => None,
                None => Some((Err(abandoned()), None)),
            }
        });
        ClientBody::new(StreamBody::new(frames))
    }
}
