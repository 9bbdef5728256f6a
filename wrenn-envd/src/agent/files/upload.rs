use std::{
    error::Error,
    io,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    sync::Mutex,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use tokio::{
    fs::{self, OpenOptions},
    io::AsyncWriteExt as _,
};

use super::{
    target::Target,
    temporary::{Temporary, Upload},
};
use crate::agent::{
    api_error::ApiError,
    http::{Body, json},
    settings::Settings,
    users::User,
};

/// One written file, in the answer.
#[derive(Debug, serde::Serialize)]
struct Written {
    path: String,
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// `POST /files`: one file as the body, or several as multipart. Each appears whole or not at all.
pub(in crate::agent) async fn upload(
    settings: &Mutex<Settings>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let target = Target::parse(settings, request.uri())?;
    let (head, body) = request.into_parts();
    if let Some(encoding) = head.headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
        let message = format!("the content encoding {encoding:?} is not supported");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let written = match boundary(&head.headers) {
        Some(boundary) => write_parts(&target, boundary, body.into_data_stream()).await?,
        None => vec![write_file(&target.path()?, &target.user, body.into_data_stream()).await?],
    };
    json(&written)
}

fn boundary(headers: &HeaderMap) -> Option<String> {
    multer::parse_boundary(headers.get(CONTENT_TYPE)?.to_str().ok()?).ok()
}

/// Parts named `file`; a part's file name is its path, unless the query has one.
async fn write_parts<S, E>(target: &Target, boundary: String, body: S) -> Result<Vec<Written>, ApiError>
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Error + Send + Sync + 'static,
{
    let malformed = |error: multer::Error| ApiError::bad_request(format!("the multipart body: {error}"));
    let mut parts = multer::Multipart::new(body, boundary);
    let mut written = Vec::new();
    while let Some(part) = parts.next_field().await.map_err(malformed)? {
        if part.name() != Some("file") {
            continue;
        }
        let path = target.path_or(part.file_name().unwrap_or(""))?;
        written.push(write_file(&path, &target.user, part.into_stream()).await?);
    }
    if written.is_empty() {
        return Err(ApiError::bad_request("the multipart body has no part named file"));
    }
    Ok(written)
}

/// Writes `body` beside `path`, and puts it in place once it is all there.
async fn write_file<S, E>(path: &Path, user: &User, body: S) -> Result<Written, ApiError>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: Error,
{
    let name = path.display().to_string();
    let failed = |error: io::Error| ApiError::from_io(&name, &error);
    // What a link leads to is replaced, not the link.
    let place = fs::canonicalize(path).await.unwrap_or_else(|_| path.to_owned());
    let replaced = fs::metadata(&place).await.ok();
    if replaced.as_ref().is_some_and(|found| !found.is_file()) {
        return Err(ApiError::bad_request(format!("{name} is no regular file")));
    }
    let (Some(parent), Some(file_name)) = (place.parent(), place.file_name()) else {
        return Err(ApiError::bad_request(format!("{name} names no file")));
    };
    create_parents(parent, user).map_err(failed)?;

    let upload = if replaced.is_some() { Upload::Replacement } else { Upload::New };
    let temporary = Temporary::beside(parent, upload);
    let mode = replaced.map_or(0o644, |found| found.mode() & 0o7777);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary.path).await.map_err(failed)?;
    let mut body = std::pin::pin!(body);
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("{name}: the body is cut short: {error}")))?;
        file.write_all(&chunk).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    give_to(&temporary.path, user).map_err(failed)?;
    fs::rename(&temporary.path, &place).await.map_err(failed)?;
    temporary.keep();
    Ok(Written { path: name, name: file_name.to_string_lossy().into_owned(), kind: "file" })
}

/// Creates what is missing of `directory`; what is created is the user's.
fn create_parents(directory: &Path, user: &User) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    if let Some(parent) = directory.parent() {
        create_parents(parent, user)?;
    }
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        created => created.and_then(|()| give_to(directory, user)),
    }
}

fn give_to(path: &Path, user: &User) -> io::Result<()> {
    // An agent that is not root, as in a test, owns what it writes.
    if nix::unistd::geteuid().is_root() { chown(path, Some(user.uid), Some(user.gid)) } else { Ok(()) }
}
