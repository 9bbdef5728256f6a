use std::{io, ops::Range, pin::Pin, sync::Mutex};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE, VARY},
};

use super::{
    chunks,
    encoding::Encoding,
    gzip,
    query::Query,
    range::{self, Asked},
    regular::Contents,
    target::Target,
};
use crate::agent::{
    answer::{Body, empty},
    api_error::ApiError,
    disk::threads,
    settings::Settings,
};

/// `GET /files`: a regular file, or a part of it, as the user may read it.
pub(super) async fn download(
    settings: &Mutex<Settings>,
    query: Query,
    request: &Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let target = Target::find(settings, query)?;
    let path = target.path()?;
    let contents = threads::as_user(target.user, move || Contents::open(&path)).await?;
    let encoding = Encoding::wanted(request.headers())?;
    let header = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let length = match &contents {
        Contents::Whole(bytes) => bytes.len() as u64,
        Contents::Sized(_, length) => *length,
        Contents::Unsized(..) => 0,
    };
    // Of nothing there is no part: a client that always asks for one gets nothing.
    let asked = header.filter(|_| length > 0).map_or(Asked::Whole, |header| range::parse(header, length));
    let mut response = match asked {
        Asked::Whole if encoding == Encoding::Gzip => compressed(all(contents)),
        Asked::Whole if matches!(contents, Contents::Unsized(..)) => Response::new(body(all(contents))),
        Asked::Whole => sized(Response::new(body(all(contents))), length),
        Asked::Part(part) => {
            let (bytes, content_range) =
                (part.end - part.start, format!("bytes {}-{}/{length}", part.start, part.end - 1));
            let mut response = sized(Response::new(body(some(contents, part))), bytes);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            ranged(response, &content_range)
        }
        Asked::Outside => return Ok(ranged(empty(StatusCode::RANGE_NOT_SATISFIABLE), &format!("bytes */{length}"))),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    Ok(response)
}

/// A stream of what a file holds.
type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

fn all(contents: Contents) -> Chunks {
    match contents {
        Contents::Unsized(head, file) => Box::pin(chunks::rest(head.into(), file, UNSIZED_BYTES_MAX)),
        Contents::Sized(_, length) => some(contents, 0..length),
        Contents::Whole(bytes) => once(bytes.into()),
    }
}

/// A part of a file whose length is known.
fn some(contents: Contents, part: Range<u64>) -> Chunks {
    match contents {
        Contents::Sized(file, _) => Box::pin(chunks::part(file, part)),
        Contents::Whole(bytes) | Contents::Unsized(bytes, _) => {
            let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(bytes.len());
            once(Bytes::copy_from_slice(&bytes[at(part.start)..at(part.end)]))
        }
    }
}

fn once(bytes: Bytes) -> Chunks {
    Box::pin(stream::iter((!bytes.is_empty()).then_some(Ok(bytes))))
}

fn body(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map_ok(Frame::data).map_err(Into::into)).boxed_unsync()
}

fn compressed(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(body(gzip::compressed(chunks)));
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

fn sized(mut response: Response<Body>, bytes: u64) -> Response<Body> {
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    response
}

fn ranged(mut response: Response<Body>, content_range: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(content_range) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    response
}

/// What is read of a file that does not say how long it is: some of the kernel's are as long as memory.
const UNSIZED_BYTES_MAX: u64 = 256 << 20;
