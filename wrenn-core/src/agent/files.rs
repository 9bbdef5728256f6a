//! Calls about files: contents over plain HTTP, everything else as calls of `filesystem.Filesystem`.

use crate::agent::client::ask;
use crate::agent::client::collected;
use crate::agent::client::escape;
use crate::agent::client::with_token;
use std::{collections::BTreeMap, io, sync::Arc};

use bytes::Bytes;
use connectrpc::{
    ConnectError,
    client::{ClientBody, ServerStream, full_body},
};
use futures::stream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_TYPE, RANGE},
};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::{sync::mpsc, task::JoinHandle};
use wrenn_envd::proto::filesystem::{
    self as wire, EntryInfo, FilesystemEvent, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
    WatchDirRequest, WatchDirResponse, watch_dir_response,
};

use crate::agent::activity::Activity;
use crate::agent::client::{AgentClient, Result};
use crate::agent::connection::Answer;
use crate::agent::error::AgentError;

/// Which file, as whom. A relative path is relative to the home of the user, or of the default one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileRequest {
    pub(crate) path: String,
    pub(crate) user: Option<String>,
    /// What an upload notes of itself, by lower-case key.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// What an upload sends. Without its end it comes to nothing.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    End,
}

/// An upload under way. Dropping it abandons it: the file stays as it was.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) pieces: mpsc::Sender<Piece>,
    /// Ends when the file is in place, or refused.
    pub(crate) answer: JoinHandle<Result<()>>,
}

/// The events of one watch.
#[derive(Debug)]
pub(crate) struct WatchStream {
    messages: ServerStream<Answer, wire::__buffa::view::WatchDirResponseView<'static>>,
}

impl AgentClient {
    /// Reads a regular file, of at most 256 MiB.
    pub(crate) async fn read_file(&self, request: &FileRequest) -> Result<Bytes> {
        collected(self.ask_files(Method::GET, request, HeaderMap::new(), full_body(Bytes::new())).await?).await
    }

    /// Opens a regular file for reading from `offset` on.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidArgument`] for an offset that is not in the file.
    pub(crate) async fn open_file(&self, request: &FileRequest, offset: u64) -> Result<Answer> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            headers.insert(RANGE, header_value(&format!("bytes={offset}-"))?);
        }
        let outside =
            || AgentError::InvalidArgument { message: format!("{} has no byte at the offset {offset}", request.path) };
        match self.ask_files(Method::GET, request, headers, full_body(Bytes::new())).await {
            // Of a file without a length all is sent, whatever was asked for.
            Ok(answer) if offset > 0 && answer.status() != StatusCode::PARTIAL_CONTENT => Err(outside()),
            Ok(answer) => Ok(answer.into_body()),
            Err(AgentError::Refused { code, .. }) if code == StatusCode::RANGE_NOT_SATISFIABLE.as_str() => {
                Err(outside())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a file, whole or not at all, with the parents that it lacks.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling leaves the file as it was, or written.
    pub(crate) async fn write_file(&self, request: &FileRequest, contents: Bytes) -> Result<()> {
        let answer = self.ask_files(Method::POST, request, request.upload_headers()?, full_body(contents)).await?;
        collected(answer).await.map(drop)
    }

    /// Begins to write a file whose contents come piece by piece.
    pub(crate) fn upload(self: &Arc<Self>, request: FileRequest) -> Upload {
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        let agent = Arc::clone(self);
        let answer = tokio::spawn(async move {
            let headers = request.upload_headers()?;
            let body = body(received, agent.activity().clone());
            let answer = agent.ask_files(Method::POST, &request, headers, body).await?;
            collected(answer).await.map(drop)
        });
        Upload { pieces, answer }
    }

    async fn ask_files(
        &self,
        method: Method,
        request: &FileRequest,
        headers: HeaderMap,
        body: ClientBody,
    ) -> Result<Response<Answer>> {
        let headers = with_token(headers, self.token().as_deref())?;
        ask(&self.files, method, &request.route(), headers, body).await
    }

    /// What lies at a path.
    pub(crate) async fn stat(&self, path: &str, user: Option<&str>) -> Result<EntryInfo> {
        let request = StatRequest { path: path.to_owned(), ..Default::default() };
        let answer = self.filesystem.stat_with_options(request, self.options_of(user)?).await?.into_owned();
        answer.entry.into_option().ok_or_else(|| AgentError::lost("an answer without an entry"))
    }

    /// What is in a directory, and in those below it, `depth` levels in all.
    pub(crate) async fn list_dir(&self, path: &str, depth: u32, user: Option<&str>) -> Result<Vec<EntryInfo>> {
        let request = ListDirRequest { path: path.to_owned(), depth, ..Default::default() };
        Ok(self.filesystem.list_dir_with_options(request, self.options_of(user)?).await?.into_owned().entries)
    }

    /// Makes a directory, and those on the way to it.
    pub(crate) async fn make_dir(&self, path: &str, user: Option<&str>) -> Result<()> {
        let request = MakeDirRequest { path: path.to_owned(), ..Default::default() };
        self.filesystem.make_dir_with_options(request, self.options_of(user)?).await?;
        Ok(())
    }

    /// Renames, and makes the directories on the way to the new name.
    pub(crate) async fn rename(&self, from: &str, to: &str, user: Option<&str>) -> Result<()> {
        let request = MoveRequest { source: from.to_owned(), destination: to.to_owned(), ..Default::default() };
        self.filesystem.r#move_with_options(request, self.options_of(user)?).await?;
        Ok(())
    }

    /// Removes a file, or a directory with all that is in it.
    pub(crate) async fn remove(&self, path: &str, user: Option<&str>) -> Result<()> {
        let request = RemoveRequest { path: path.to_owned(), ..Default::default() };
        self.filesystem.remove_with_options(request, self.options_of(user)?).await?;
        Ok(())
    }

    /// Watches a directory; returns when everything that happens from then on will be told.
    pub(crate) async fn watch_dir(&self, path: &str, recursive: bool, user: Option<&str>) -> Result<WatchStream> {
        let request = WatchDirRequest { path: path.to_owned(), recursive, ..Default::default() };
        let messages = self.filesystem.watch_dir_with_options(request, self.options_of(user)?).await?;
        let mut stream = WatchStream { messages };
        match stream.receive().await? {
            Some(watch_dir_response::Event::Start(_)) => Ok(stream),
            _ => Err(AgentError::lost("a watch that does not begin with its start")),
        }
    }
}

impl WatchStream {
    /// The next event; `None` when the watched directory is gone.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<FilesystemEvent>> {
        loop {
            match self.receive().await? {
                Some(watch_dir_response::Event::Filesystem(event)) => return Ok(Some(*event)),
                // Signs of life.
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<watch_dir_response::Event>> {
        loop {
            let Some(message) = self.messages.message::<WatchDirResponse>().await? else { return Ok(None) };
            if let Some(event) = message.to_owned_message().event {
                return Ok(Some(event));
            }
        }
    }
}

impl FileRequest {
    fn route(&self) -> String {
        let user = self.user.as_deref().map_or_else(String::new, |user| format!("&username={}", escape(user)));
        format!("/files?path={}{user}", escape(&self.path))
    }

    fn upload_headers(&self) -> Result<HeaderMap> {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))]);
        for (key, value) in &self.metadata {
            let name = format!("x-metadata-{key}");
            let name: HeaderName = name.to_ascii_lowercase().parse().map_err(|_| AgentError::InvalidArgument {
                message: format!("{key:?} cannot be a key of metadata: it takes letters, digits, `-` and `_`"),
            })?;
            headers.insert(name, header_value(value)?);
        }
        Ok(headers)
    }
}

fn header_value(text: &str) -> Result<HeaderValue> {
    let refused = |_| AgentError::InvalidArgument { message: format!("{text:?} is not printable ASCII") };
    text.parse().map_err(refused)
}

/// The pieces as they come; a break where the last one is not the end, so that the agent does not take a part for all.
fn body(received: mpsc::Receiver<Piece>, activity: Activity) -> ClientBody {
    let abandoned = || ConnectError::canceled("the upload was abandoned");
    let frames = stream::unfold(Some((received, activity)), move |state| async move {
        let (mut received, activity) = state?;
        match received.recv().await {
            Some(Piece::Data(bytes)) => {
                activity.touch();
                Some((Ok(Frame::data(bytes)), Some((received, activity))))
            }
            Some(Piece::End) => None,
            None => Some((Err(abandoned()), None)),
        }
    });
    StreamBody::new(frames).boxed()
}

impl AgentError {
    /// As the streams of files have it, with itself inside.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::InvalidArgument { .. } => io::ErrorKind::InvalidInput,
            Self::NotReachable { .. } | Self::ConnectionLost { .. } => io::ErrorKind::ConnectionAborted,
            Self::TimedOut { .. } | Self::Unresponsive { .. } => io::ErrorKind::TimedOut,
            Self::Refused { code, .. } if code == StatusCode::INSUFFICIENT_STORAGE.as_str() => {
                io::ErrorKind::StorageFull
            }
            Self::Refused { code, .. } if code == StatusCode::FORBIDDEN.as_str() => io::ErrorKind::PermissionDenied,
            Self::Senseless { .. } => io::ErrorKind::InvalidData,
            Self::Refused { .. } | Self::Unauthorized { .. } | Self::OutOfRange { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

/// How many pieces wait to be sent.
const PIECES_MAX: usize = 2;
