use std::{io, path::Path, sync::Mutex};

use futures::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
};
use tokio::{
    fs::{self, File, OpenOptions},
    io::AsyncReadExt as _,
};
use tokio_util::io::ReaderStream;

use super::target::Target;
use crate::agent::{api_error::ApiError, http::Body, settings::Settings};

/// `GET /files`: a regular file, as it is.
pub(in crate::agent) async fn download(
    settings: &Mutex<Settings>,
    request: &Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let path = Target::parse(settings, request.uri())?.path()?;
    let (file, length) = open_regular(&path).await?;
    // A file of the kernel's says that it is empty, and ends where it ends.
    let limit = if length == 0 { u64::MAX } else { length };
    let frames = ReaderStream::with_capacity(file.take(limit), CHUNK_BYTES).map_ok(Frame::data).map_err(Into::into);
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if length > 0 {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(response)
}

/// Opens `path`, and its length in bytes; anything but a regular file is refused, since it may never end.
async fn open_regular(path: &Path) -> Result<(File, u64), ApiError> {
    let name = path.display().to_string();
    let failed = |error: io::Error| ApiError::from_io(&name, &error);
    // Before it is opened: opening a pipe waits, and opening a device may do anything.
    let found = fs::metadata(path).await.map_err(failed)?;
    if !found.is_file() {
        return Err(ApiError::bad_request(format!("{name} is no regular file")));
    }
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).await.map_err(failed)?;
    let opened = file.metadata().await.map_err(failed)?;
    if !opened.is_file() {
        return Err(ApiError::bad_request(format!("{name} is no regular file")));
    }
    Ok((file, opened.len()))
}

const CHUNK_BYTES: usize = 64 << 10;
