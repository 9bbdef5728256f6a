//! A sandbox's files.

use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{Multipart, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncSeekExt as _};
use tokio::time::timeout;
use tokio_util::io::{ReaderStream, StreamReader};
use utoipa::ToSchema;
use wrenn_core::{Error, FileEntry, FileKind, Files};

use crate::api::state::Context;
use crate::api::text::chain;
use crate::api::time::rfc3339;
use crate::api::v1::answer::Refused;
use crate::api::v1::body::Body;
use crate::api::v1::owner::Owner;
use crate::api::v1::path::SandboxPath;
use crate::api::v1::refusals::{BadInput, Failing, Missing, TooSlow};
use crate::service::error::ServiceError;

/// Something in a sandbox.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    /// Its path; one that is relative begins at the user's home.
    #[schema(pattern = r"^[^\u0000]+$", max_length = 4095, example = "notes/today.txt")]
    path: String,
}

/// A file to write, as a form. The file is streamed where `path` comes first.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form is read field by field; this is what the document says of it")]
struct WriteForm {
    /// Its path; one that is relative begins at the user's home.
    #[schema(pattern = r"^[^\u0000]+$", max_length = 4095, example = "notes/today.txt")]
    path: String,
    /// What it is to have.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// What a file has.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "a file is never held as a whole; this is what the document says of it")]
struct Content(Vec<u8>);

/// What lies in a directory.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry)]
pub(super) struct EntryBody {
    /// Its name in the directory.
    #[schema(example = "today.txt")]
    name: String,
    /// Its whole path.
    #[schema(example = "/home/user/notes/today.txt")]
    path: String,
    r#type: EntryKind,
    /// In bytes.
    size: u64,
    /// In octal, as `chmod` takes it.
    #[schema(example = "0644")]
    mode: String,
    /// Whose it is.
    #[schema(example = "user")]
    owner: String,
    /// The group whose it is.
    #[schema(example = "user")]
    group: String,
    /// When its content last changed.
    #[schema(format = DateTime)]
    modified_at: Option<String>,
    /// Where a link leads; null for all else.
    symlink_target: Option<String>,
}

/// What kind of entry of a directory it is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe or a socket.
    Other,
}

/// Reads a file.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/read", operation_id = "read_file", tag = "files",
    params(SandboxPath), request_body = At,
    responses((status = 200, description = "The bytes, as they come.", content_type = "application/octet-stream", body = inline(Content)), Missing, Failing),
)]
pub(super) async fn read(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(At { path }): Body<At>,
) -> Result<Response, Refused> {
    check(&path)?;
    let file = files(&context, &owner, &id, "read a file").await?.open(&path).await.map_err(unfit)?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Bytes::from_stream(ReaderStream::with_capacity(file, PIECE_BYTES))).into_response())
}

/// Writes a file, which is in its place whole or not at all. Directories that are missing are made.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/write", operation_id = "write_file", tag = "files",
    params(SandboxPath), request_body(content = WriteForm, content_type = "multipart/form-data"),
    responses((status = 204, description = "The file is in its place."), BadInput, TooSlow, Missing, Failing),
)]
pub(super) async fn write(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
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

/// Lists a directory.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/list", operation_id = "list_directory", tag = "files",
    params(SandboxPath), request_body = At,
    responses((status = 200, description = "What lies in it.", body = Vec<EntryBody>), Missing, Failing),
)]
pub(super) async fn list(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(At { path }): Body<At>,
) -> Result<Json<Vec<EntryBody>>, Refused> {
    check(&path)?;
    let entries = files(&context, &owner, &id, "list a directory").await?.list(&path).await;
    Ok(Json(entries.map_err(unfit)?.into_iter().map(Into::into).collect()))
}

/// Makes a directory, and those above it that are missing.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/mkdir", operation_id = "make_directory", tag = "files",
    params(SandboxPath), request_body = At,
    responses((status = 204, description = "It is there."), Missing, Failing),
)]
pub(super) async fn make_dir(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(At { path }): Body<At>,
) -> Result<StatusCode, Refused> {
    check(&path)?;
    let made = files(&context, &owner, &id, "make a directory").await?.make_dir(&path).await;
    made.map_err(unfit)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a file, or a directory with all that lies in it. What is not there is removed as well.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/files/remove", operation_id = "remove_file", tag = "files",
    params(SandboxPath), request_body = At,
    responses((status = 204, description = "It is not there."), Missing, Failing),
)]
pub(super) async fn remove(
    State(context): State<Context>,
    Owner(owner): Owner,
    SandboxPath { id }: SandboxPath,
    Body(At { path }): Body<At>,
) -> Result<StatusCode, Refused> {
    check(&path)?;
    let removed = files(&context, &owner, &id, "remove a file").await?.remove(&path).await;
    removed.map_err(unfit)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn files(context: &Context, owner: &str, id: &str, operation: &'static str) -> Result<Files, Refused> {
    Ok(context.sandboxes.running(owner, id, operation).await?.files())
}

/// Whether a path can be one, whatever lies there.
fn check(path: &str) -> Result<(), Refused> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(Refused::bad_request(format!("path has 1 to {PATH_BYTES_MAX} bytes, and none of them is 0")));
    }
    Ok(())
}

/// The path can be one, so what lies there stands against it, such as a directory where a file is to be.
fn unfit(error: Error) -> Refused {
    match error {
        Error::InvalidInput { .. } => Refused::new(StatusCode::CONFLICT, "refused", chain(&error)),
        other => ServiceError::from(other).into(),
    }
}

async fn put(files: &Files, path: &str, source: impl AsyncRead) -> Result<(), Refused> {
    check(path)?;
    files.write_from(path, source).await.map(drop).map_err(unfit)
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
                FileKind::File => EntryKind::File,
                FileKind::Directory => EntryKind::Directory,
                FileKind::Symlink => EntryKind::Symlink,
                _ => EntryKind::Other,
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
/// `PATH_MAX` of Linux, which counts a zero at its end.
const PATH_BYTES_MAX: usize = 4095;
const SILENCE_MAX: Duration = Duration::from_secs(30);
