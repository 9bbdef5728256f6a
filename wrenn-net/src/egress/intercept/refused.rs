//! What a guest is told in place of a server's answer.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

/// What a response carries: what the server sends, or a text of wrenn's own.
pub(super) type Body = Either<Incoming, Full<Bytes>>;

/// Why a request was not passed on. Neither a secret nor what the guest sent is in its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) why: String,
}

impl Refused {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let text = format!("wrenn: {}\n", self.why);
        let mut response = Response::new(Either::Right(Full::new(text.into())));
        *response.status_mut() = self.status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}
