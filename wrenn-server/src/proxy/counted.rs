//! Bodies whose bytes are counted as they pass.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use prometheus_client::metrics::counter::Counter;

/// A body whose bytes are counted as they pass. It ends and fails as the one within.
struct Counted {
    body: Body,
    counter: Counter,
}

/// The same body, whose bytes are counted.
pub(super) fn counted(body: Body, counter: Counter) -> Body {
    Body::new(Counted { body, counter })
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.counter.inc_by(u64::try_from(data.len()).unwrap_or(u64::MAX));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_is_counted_and_the_length_stays_known() {
        let counter = Counter::default();
        let body = counted(Body::from("some bytes"), counter.clone());
        assert_eq!(body.size_hint().exact(), Some(10));
        let bytes = axum::body::to_bytes(body, 100).await.expect("a body");
        assert_eq!((&bytes[..], counter.get()), (&b"some bytes"[..], 10));
    }
}
