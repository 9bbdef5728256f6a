use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Mutex,
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
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
    target::Target,
};
use crate::agent::{
    answer::{Body, empty},
    api_error::ApiError,
    identity::as_user,
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
    let (file, length) = as_user(target.user, move || open_regular(&path)).await?;
    let encoding = Encoding::wanted(request.headers())?;
    let header = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let mut response = match header.map_or(Asked::Whole, |header| range::parse(header, length)) {
        // It may hold more than it says: one of the kernel's does.
        _ if length == 0 && encoding == Encoding::Identity => Response::new(body(chunks::whole(file))),
        _ if length == 0 => compressed(chunks::whole(file)),
        Asked::Whole if encoding == Encoding::Gzip => compressed(chunks::part(file, 0..length)),
        Asked::Whole => sized(Response::new(body(chunks::part(file, 0..length))), length),
        Asked::Part(part) => {
            let (bytes, content_range) =
                (part.end - part.start, format!("bytes {}-{}/{length}", part.start, part.end - 1));
            let mut response = sized(Response::new(body(chunks::part(file, part))), bytes);
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

/// Opens `path`, and its length in bytes; anything but a regular file is refused, since it may never end.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64), ApiError> {
    let name = path.display().to_string();
    let failed = |error: io::Error| ApiError::from_io(&name, &error);
    let refused = || ApiError::bad_request(format!("{name} is no regular file"));
    // Before it is opened: opening a pipe waits, and opening a device may do anything.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refused());
    }
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let opened = file.metadata().map_err(failed)?;
    if opened.is_file() { Ok((file, opened.len())) } else { Err(refused()) }
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
