//! A sandbox's files.

use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{Multipart, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncSeekExt as _};
use tokio::time::timeout;
use tokio_util::io::{ReaderStream, StreamReader};
use wrenn_core::{FileEntry, FileKind, Files};

use crate::api::state::Context;
use crate::api::time::rfc3339;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;
use crate::service::error::ServiceError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    path: String,
}

/// What lies in a directory.
#[derive(Debug, Serialize)]
pub(super) struct EntryBody {
    name: String,
    path: String,
    r#type: &'static str,
    size: u64,
    /// In octal, as `chmod` takes it.
    mode: String,
    owner: String,
    group: String,
    modified_at: Option<String>,
    symlink_target: Option<String>,
}

pub(super) async fn read(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(At { path }): Body<At>,
) -> Result<Response, Refused> {
    let file = files(&context, &owner, &id, "read a file").await?.open(&path).await.map_err(ServiceError::from)?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Bytes::from_stream(ReaderStream::with_capacity(file, PIECE_BYTES))).into_response())
}

/// Takes a form with `path` and `file`, in either order, and streams the file to its place.
pub(super) async fn write(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    form: Result<Multipart, MultipartRejection>,
) -> Result<StatusCode, Refused> {
    let mut form = form.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
    let files = files(&context, &owner, &id, "write a file").await?;
    let (mut path, mut early) = (None, None);
    while let Some(field) = next(&mut form).await? {
        match (field.name(), &path) {
            (Some("path"), None) => path = Some(text(field).await?),
            (Some("file"), Some(path)) => {
                put(&files, path, pieces(field)).await?;
                return Ok(StatusCode::NO_CONTENT);
            }
            (Some("file"), None) if early.is_none() => early = Some(keep(field).await?),
            (name, _) => {
                return Err(Refused::bad_request(format!(
                    "the form has the field {:?} where it may have `path` and `file` once each",
                    name.unwrap_or_default()
                )));
            }
        }
    }
    match (path, early) {
        (Some(path), Some(file)) => put(&files, &path, file).await.map(|()| StatusCode::NO_CONTENT),
        (None, _) => Err(Refused::bad_request("the form has no field `path`")),
        (_, None) => Err(Refused::bad_request("the form has no field `file`")),
    }
}

pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(At { path }): Body<At>,
) -> Result<Json<Vec<EntryBody>>, Refused> {
    let entries = files(&context, &owner, &id, "list a directory").await?.list(&path).await;
    Ok(Json(entries.map_err(ServiceError::from)?.into_iter().map(Into::into).collect()))
}

pub(super) async fn make_dir(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(At { path }): Body<At>,
) -> Result<StatusCode, Refused> {
    let made = files(&context, &owner, &id, "make a directory").await?.make_dir(&path).await;
    made.map_err(ServiceError::from)?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(id): Path<String>,
    Body(At { path }): Body<At>,
) -> Result<StatusCode, Refused> {
    let removed = files(&context, &owner, &id, "remove a file").await?.remove(&path).await;
    removed.map_err(ServiceError::from)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn files(context: &Context, owner: &str, id: &str, operation: &'static str) -> Result<Files, Refused> {
    Ok(context.sandboxes.running(owner, id, operation).await?.files())
}

async fn put(files: &Files, path: &str, source: impl AsyncRead) -> Result<(), Refused> {
    files.write_from(path, source).await.map(drop).map_err(|error| ServiceError::from(error).into())
}

async fn next(form: &mut Multipart) -> Result<Option<Field<'_>>, Refused> {
    timeout(SILENCE_MAX, form.next_field()).await.map_err(|_elapsed| too_slow())?.map_err(|error| malformed(&error))
}

async fn text(mut field: Field<'_>) -> Result<String, Refused> {
    let mut bytes = Vec::new();
    while let Some(piece) =
        timeout(SILENCE_MAX, field.chunk()).await.map_err(|_elapsed| too_slow())?.map_err(|error| malformed(&error))?
    {
        bytes.extend_from_slice(&piece);
        if bytes.len() > PATH_BYTES_MAX {
            return Err(Refused::bad_request(format!("`path` is longer than {PATH_BYTES_MAX} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|_| Refused::bad_request("`path` is no UTF-8"))
}

/// A field's bytes as they come. A client that sends nothing for a while is given up.
fn pieces(field: Field<'_>) -> impl AsyncRead {
    StreamReader::new(Box::pin(stream::try_unfold(field, async |mut field| {
        match timeout(SILENCE_MAX, field.chunk()).await {
            Ok(Ok(piece)) => Ok(piece.map(|piece| (piece, field))),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client sent nothing for a while")),
        }
    })))
}

/// Keeps a field until it is known where it goes: in a file without a name.
async fn keep(field: Field<'_>) -> Result<tokio::fs::File, Refused> {
    let kept = async {
        let mut file = tokio::fs::File::from_std(tempfile::tempfile()?);
        tokio::io::copy(&mut std::pin::pin!(pieces(field)), &mut file).await?;
        file.rewind().await?;
        Ok::<_, io::Error>(file)
    };
    kept.await.map_err(|error| Refused::bad_request(format!("the file could not be taken: {error}")))
}

fn malformed(error: &MultipartError) -> Refused {
    Refused::bad_request(format!("the form cannot be read: {}", error.body_text()))
}

fn too_slow() -> Refused {
    Refused::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the client sent nothing for 30 seconds")
}

impl From<FileEntry> for EntryBody {
    fn from(entry: FileEntry) -> Self {
        Self {
            name: entry.name,
            path: entry.path,
            r#type: match entry.kind {
                FileKind::File => "file",
                FileKind::Directory => "directory",
                FileKind::Symlink => "symlink",
                _ => "other",
            },
            size: entry.len,
            mode: format!("{:04o}", entry.mode),
            owner: entry.owner,
            group: entry.group,
            modified_at: entry.modified.map(|at| rfc3339(at.into())),
            symlink_target: entry.symlink_target,
        }
    }
}

const PIECE_BYTES: usize = 64 << 10;
/// `PATH_MAX` of Linux.
const PATH_BYTES_MAX: usize = 4096;
const SILENCE_MAX: Duration = Duration::from_secs(30);
