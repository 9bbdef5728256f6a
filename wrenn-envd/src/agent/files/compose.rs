use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, Response, body::Incoming};
use rustix::io::Errno;

use super::{
    place::{Missing, Place},
    query::Query,
    regular::open_regular,
    spooled::Spooled,
    target::Target,
    written::Written,
};
use crate::agent::{
    answer::{Body, json},
    api_error::ApiError,
    disk::{copy::copy_contents, spot::Spot, threads},
    identity::Identity,
    settings::Settings,
    users::User,
};

/// The body of `POST /files/compose`.
#[derive(Debug, serde::Deserialize)]
struct ComposeRequest {
    source_paths: Vec<String>,
    destination: String,
    #[serde(default)]
    username: Option<String>,
}

/// `POST /files/compose`: makes one file of several, which then go. One that fails leaves all as it was.
pub(in crate::agent) async fn compose(
    settings: &Mutex<Settings>,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))?.to_bytes();
    let request: ComposeRequest =
        serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("the body: {error}")))?;
    if request.source_paths.is_empty() {
        return Err(ApiError::bad_request("source_paths is empty"));
    }
    let query = Query { path: Some(request.destination), username: request.username, ..Query::default() };
    let target = Target::find(settings, query)?;
    let destination = target.file_path()?;
    let sources: Vec<PathBuf> =
        request.source_paths.iter().map(|path| target.resolve(path)).collect::<Result<_, _>>()?;
    if sources.contains(&destination) {
        return Err(ApiError::bad_request(format!("{} is a source and the destination", destination.display())));
    }
    let composed = threads::run(move || compose_files(&sources, &destination, &target.user));
    json(&composed.await?)
}

fn compose_files(sources: &[PathBuf], destination: &Path, user: &User) -> Result<Written, ApiError> {
    let failed = |error: io::Error| ApiError::from_io(&destination.display().to_string(), &error);
    let identity = Identity::assume(user).map_err(failed)?;
    let opened: Vec<_> = sources.iter().map(|path| Source::open(path)).collect::<Result<_, _>>()?;
    let (file, temporary) = Place::find(destination, Missing::Leave)?.spool(user)?;
    let mut end = 0;
    for source in &opened {
        end = copy_contents(&source.file, &file, end).map_err(failed)?;
    }
    let spooled = Spooled::new(&file, temporary).map_err(failed)?;
    drop(identity);
    spooled.put(destination, user, &BTreeMap::new())?;
    let _identity = Identity::assume(user).map_err(failed)?;
    for source in opened {
        source.remove().map_err(|error| {
            let (made, stays) = (destination.display(), source.path.display());
            ApiError::from_io(&format!("{made} is made, but {stays} stays"), &error)
        })?;
    }
    Ok(Written::file(destination, BTreeMap::new()))
}

/// A file that is taken in, and then goes.
struct Source<'a> {
    path: &'a Path,
    spot: Spot,
    /// Device and inode of what lies there, a link's own.
    identity: (u64, u64),
    file: File,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self, ApiError> {
        let failed = |error: io::Error| ApiError::from_io(&path.display().to_string(), &error);
        let spot = Spot::find(path).map_err(failed)?;
        let found = spot.stat().map_err(|errno| failed(errno.into()))?;
        let file = open_regular(spot.directory(), spot.name(), path)?;
        Ok(Self { path, spot, identity: (found.st_dev, found.st_ino), file })
    }

    fn remove(&self) -> io::Result<()> {
        match self.spot.stat() {
            // One that is named twice.
            Err(Errno::NOENT) => Ok(()),
            found => {
                let found = found?;
                if (found.st_dev, found.st_ino) != self.identity {
                    return Err(io::Error::other("it was replaced meanwhile"));
                }
                Ok(self.spot.unlink()?)
            }
        }
    }
}

const BODY_BYTES_MAX: usize = 1 << 20;
