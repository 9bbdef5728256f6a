use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::PathBuf,
    pin::Pin,
    sync::Mutex,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use hyper::{HeaderMap, Request, Response, body::Incoming, header::CONTENT_TYPE};
use tokio::time::timeout;

use super::{
    encoding::Encoding,
    gzip, headers,
    parts::{Part, Parts},
    query::Query,
    spool::Spool,
    spooled::Spooled,
    target::Target,
    written::Written,
};
use crate::agent::{
    answer::{Body, json},
    api_error::ApiError,
    disk::{cleanup, threads},
    settings::Settings,
    users::User,
};

/// A request's body, decoded.
pub(super) type Contents = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// `POST /files`: one file as the body, or several as multipart. Nothing is in its place before all have arrived, and each
/// file gets there whole, with the metadata of this upload and no other.
pub(super) async fn upload(
    settings: &Mutex<Settings>,
    query: Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let target = Target::find(settings, query)?;
    let (head, body) = request.into_parts();
    let metadata = headers::metadata(&head.headers)?;
    let contents = decoded(Encoding::of_body(&head.headers)?, body);
    let boundary = boundary(&head.headers)?;
    let written = async {
        let files = match boundary {
            Some(boundary) => read_parts(&target, Parts::new(contents, boundary)).await?,
            None => vec![(target.file_path()?, read_file(&target, contents).await?)],
        };
        put_all(target.user, files, metadata).await
    };
    let written = written.await;
    if written.is_err() {
        cleanup::settle(SETTLE_MAX).await;
    }
    json(&written?)
}

/// The boundary of a multipart body; every other type is a file's own.
fn boundary(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let is_multipart = kind.get(..10).is_some_and(|start| start.eq_ignore_ascii_case("multipart/"));
    if !is_multipart {
        return Ok(None);
    }
    multer::parse_boundary(kind).map(Some).map_err(|error| ApiError::bad_request(format!("{kind:?}: {error}")))
}

pub(super) fn decoded(encoding: Encoding, body: Incoming) -> Contents {
    let pieces = body.into_data_stream().map_err(io::Error::other);
    match encoding {
        Encoding::Identity => Box::pin(pieces),
        Encoding::Gzip => Box::pin(gzip::decompressed(pieces)),
    }
}

async fn read_file(target: &Target, mut contents: Contents) -> Result<Spooled, ApiError> {
    let path = target.file_path()?;
    let read = async {
        let mut spool = Spool::create(target.user.clone(), path.clone()).await?;
        while let Some(piece) = contents.next().await {
            let piece = piece.map_err(|error| ApiError::bad_request(format!("the body: {error}")))?;
            spool.push(piece).await.map_err(|error| ApiError::from_io(&path.display().to_string(), &error))?;
        }
        spool.finish().await.map_err(|error| ApiError::from_io(&path.display().to_string(), &error))
    };
    let read = read.await;
    if read.is_err() {
        // A client that is still sending would not hear the answer. A body that has broken stays so: asking it on and on
        // would keep the agent's one thread for ever.
        let _ = timeout(LINGER, contents.try_for_each(|_| async { Ok(()) })).await;
    }
    read
}

/// Parts named `file`. A file's path is the query's, or else the text of a part named `path`, wherever that comes, or else
/// the part's own file name.
async fn read_parts(target: &Target, mut parts: Parts) -> Result<Vec<(PathBuf, Spooled)>, ApiError> {
    let read = collect_parts(target, &mut parts).await;
    if read.is_err() {
        let _ = timeout(LINGER, parts.skip()).await;
    }
    let (path, files) = read?;
    if files.is_empty() {
        return Err(ApiError::bad_request("the multipart body has no part named file"));
    }
    let mut taken = HashSet::new();
    let mut placed = Vec::new();
    for (name, spooled) in files {
        let path = target.file_path_or(path.as_deref().or(name.as_deref()))?;
        if !taken.insert(path.clone()) {
            return Err(ApiError::bad_request(format!("{} is the path of two files", path.display())));
        }
        placed.push((path, spooled));
    }
    Ok(placed)
}

type Unplaced = (Option<String>, Spooled);

async fn collect_parts(target: &Target, parts: &mut Parts) -> Result<(Option<String>, Vec<Unplaced>), ApiError> {
    let (mut path, mut files) = (None, Vec::new());
    while let Some(part) = parts.next().await? {
        match part.name() {
            Some("path") => path = Some(part.text(PATH_BYTES_MAX).await?),
            Some("file") if files.len() < FILES_MAX => {
                let name = part.file_name().map(str::to_owned);
                // Where no path is known yet the file waits in the user's home.
                let near =
                    target.path_or(path.as_deref().or(name.as_deref())).or_else(|_| target.resolve("~/upload"))?;
                files.push((name, read_part(target.user.clone(), near, part).await?));
            }
            Some("file") => return Err(ApiError::bad_request(format!("there are more than {FILES_MAX} files"))),
            _ => {}
        }
    }
    Ok((path, files))
}

async fn read_part(user: User, near: PathBuf, mut part: Part) -> Result<Spooled, ApiError> {
    let name = near.display().to_string();
    let failed = |error: io::Error| ApiError::from_io(&name, &error);
    let mut spool = Spool::create(user, near).await?;
    while let Some(piece) = part.chunk().await? {
        spool.push(piece).await.map_err(failed)?;
    }
    spool.finish().await.map_err(failed)
}

async fn put_all(
    user: User,
    files: Vec<(PathBuf, Spooled)>,
    metadata: BTreeMap<String, String>,
) -> Result<Vec<Written>, ApiError> {
    let put = threads::run(move || {
        files
            .into_iter()
            .map(|(path, spooled)| {
                spooled.put(&path, &user, &metadata)?;
                Ok(Written::file(&path, metadata.clone()))
            })
            .collect()
    });
    put.await
}

const PATH_BYTES_MAX: usize = 4096;

/// What one call may hold open on the disk.
const FILES_MAX: usize = 10_000;

/// How long an answer waits for what a failed upload leaves to be removed. A disk that stands still takes longer.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// How long what a refused client still sends is taken in.
pub(super) const LINGER: Duration = Duration::from_secs(10);
