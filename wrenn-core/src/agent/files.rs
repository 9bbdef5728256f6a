//! Calls about files: contents over plain HTTP, everything else as calls of `filesystem.Filesystem`.

#[cfg(test)]
mod files_tests;

use std::{collections::BTreeMap, io, time::Duration};

use bytes::{Bytes, BytesMut};
use connectrpc::client::{ClientBody, ServerStream, full_body};
use futures::{Stream, StreamExt as _, stream};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_TYPE, RANGE},
};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::{sync::mpsc, time::Instant};
use wrenn_envd::proto::filesystem::{
    self as wire, EntryInfo, FilesystemEvent, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
    WatchDirRequest, WatchDirResponse, watch_dir_response,
};

use crate::agent::client::{ANSWER_BYTES_MAX, AgentClient, Result, ask, collected, escape, with_token};
use crate::agent::connection::Answer;
use crate::agent::error::AgentError;
use crate::agent::progress::{Piece, Progress};

/// What a request for a path is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resource {
    /// The file at the path.
    #[default]
    File,
    /// What is at the path, as a tar archive.
    Packed,
    /// The directory at the path, which takes what is in a tar archive.
    Unpacked,
}

/// Which file, as whom. A relative path is relative to the home of the user, or of the default one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FileRequest {
    pub(crate) path: String,
    pub(crate) resource: Resource,
    pub(crate) user: Option<String>,
    /// What an upload notes of itself, by lower-case key.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// The events of one watch.
#[derive(Debug)]
pub(crate) struct WatchStream {
    messages: ServerStream<Answer, wire::__buffa::view::WatchDirResponseView<'static>>,
}

impl AgentClient {
    /// Reads a regular file, of at most 256 MiB. Each piece may take so long as `patience`.
    ///
    /// # Errors
    ///
    /// [`AgentError::TooLong`] for a longer one.
    pub(crate) async fn read_file(&self, request: &FileRequest, patience: Duration) -> Result<Bytes> {
        let mut file = self.open_file(request, 0, patience).await?;
        let too_long = AgentError::TooLong { limit_bytes: FILE_BYTES_MAX };
        let length = usize::try_from(file.size_hint().lower()).unwrap_or(usize::MAX);
        if length > FILE_BYTES_MAX {
            return Err(too_long);
        }
        let mut contents = BytesMut::with_capacity(length);
        while let Some(piece) = self.next_piece(&mut file, patience).await? {
            if contents.len() + piece.len() > FILE_BYTES_MAX {
                return Err(too_long);
            }
            contents.extend_from_slice(&piece);
        }
        Ok(contents.freeze())
    }

    /// The next piece of a file; `None` at its end.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling loses nothing.
    pub(crate) async fn next_piece(&self, file: &mut Answer, patience: Duration) -> Result<Option<Bytes>> {
        let next = async {
            loop {
                match file.frame().await.transpose().map_err(AgentError::lost)? {
                    // A frame without data, such as trailers, is not part of the file.
                    Some(frame) => match frame.into_data() {
                        Ok(piece) => return Ok(Some(piece)),
                        Err(_trailers) => {}
                    },
                    None => return Ok(None),
                }
            }
        };
        self.bounded(Some(patience), next).await
    }

    /// Opens a regular file for reading from `offset` on.
    ///
    /// # Errors
    ///
    /// [`AgentError::InvalidArgument`] for an offset that is not in the file.
    pub(crate) async fn open_file(&self, request: &FileRequest, offset: u64, patience: Duration) -> Result<Answer> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            headers.insert(RANGE, header_value(&format!("bytes={offset}-"))?);
        }
        let outside =
            || AgentError::InvalidArgument { message: format!("{} has no byte at the offset {offset}", request.path) };
        match self.bounded(Some(patience), self.ask_files(Method::GET, request, headers, full_body(Bytes::new()))).await
        {
            // Of a file without a length, the agent sends all, even where a range was asked for.
            Ok(answer) if offset > 0 && answer.status() != StatusCode::PARTIAL_CONTENT => Err(outside()),
            Ok(answer) => Ok(answer.into_body()),
            Err(AgentError::Refused { code, .. }) if code == StatusCode::RANGE_NOT_SATISFIABLE.as_str() => {
                Err(outside())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a file, whole or not at all, with the parents that it lacks. The guest may take so long as `patience` for
    /// each piece, and for its answer after the last one.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling leaves the file as it was, or written.
    pub(crate) async fn write_file(&self, request: &FileRequest, contents: Bytes, patience: Duration) -> Result<()> {
        let progress = Progress::new();
        let body = if contents.len() <= PIECE_BYTES_MAX {
            full_body(contents)
        } else {
            progress.body(pieces(contents), self.activity().clone())
        };
        self.send_file(request, body, &progress, patience).await
    }

    /// Writes a file whose contents come piece by piece, at the sender's pace. Where the sender is dropped before it
    /// has sent the end, the upload is abandoned, and the file stays as it was.
    pub(crate) async fn upload(
        &self,
        request: &FileRequest,
        pieces: mpsc::Receiver<Piece>,
        patience: Duration,
    ) -> Result<()> {
        let progress = Progress::new();
        let pieces = stream::unfold(pieces, |mut pieces| async { pieces.recv().await.map(|piece| (piece, pieces)) });
        let body = progress.body(pieces, self.activity().clone());
        self.send_file(request, body, &progress, patience).await
    }

    async fn send_file(
        &self,
        request: &FileRequest,
        body: ClientBody,
        progress: &Progress,
        patience: Duration,
    ) -> Result<()> {
        let began = Instant::now();
        let headers = request.upload_headers()?;
        let send = async {
            let answer = self.ask_files(Method::POST, request, headers, body).await?;
            collected(answer.into_body(), ANSWER_BYTES_MAX).await.map(drop)
        };
        let stalled = async {
            progress.stalled(patience).await;
            Err(AgentError::Unresponsive { after: began.elapsed() })
        };
        tokio::select! {
            biased;
            sent = self.bounded(None, send) => sent,
            stalled = stalled => stalled,
        }
    }

    async fn ask_files(
        &self,
        method: Method,
        request: &FileRequest,
        headers: HeaderMap,
        body: ClientBody,
    ) -> Result<Response<Answer>> {
        if request.resource != Resource::File && !self.has_archives() {
            return Err(AgentError::Outdated { what: "pack and unpack archives" });
        }
        let headers = with_token(headers, self.token().as_deref())?;
        ask(&self.files, method, &request.route(), headers, body).await
    }

    /// Looks at what lies at a path.
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

    /// Watches a directory. Every change after this returns is reported.
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
                // The agent sends these to show that it is alive.
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
        let route = match self.resource {
            Resource::File => "/files",
            Resource::Packed => "/files/pack",
            Resource::Unpacked => "/files/unpack",
        };
        format!("{route}?path={}{user}", escape(&self.path))
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

fn pieces(contents: Bytes) -> impl Stream<Item = Piece> + Send + Sync + 'static {
    let data = stream::unfold(contents, |mut rest| async {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES_MAX));
        (!piece.is_empty()).then_some((Piece::Data(piece), rest))
    });
    data.chain(stream::once(async { Piece::End }))
}

impl AgentError {
    /// The kind that says the same.
    pub(crate) fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::InvalidArgument { .. } => io::ErrorKind::InvalidInput,
            Self::TooLong { .. } => io::ErrorKind::FileTooLarge,
            Self::Outdated { .. } => io::ErrorKind::Unsupported,
            Self::Senseless { .. } => io::ErrorKind::InvalidData,
            Self::NotReachable { .. } | Self::ConnectionLost { .. } => io::ErrorKind::ConnectionAborted,
            Self::TimedOut { .. } | Self::Unresponsive { .. } => io::ErrorKind::TimedOut,
            Self::Unavailable { .. } => io::ErrorKind::ResourceBusy,
            Self::Refused { code, .. } if code == StatusCode::INSUFFICIENT_STORAGE.as_str() => {
                io::ErrorKind::StorageFull
            }
            Self::Refused { code, .. } if code == StatusCode::FORBIDDEN.as_str() => io::ErrorKind::PermissionDenied,
            Self::Refused { .. } | Self::Unauthorized { .. } | Self::OutOfRange { .. } => io::ErrorKind::Other,
        }
    }
}

/// The most that is sent at once.
pub(crate) const PIECE_BYTES_MAX: usize = 256 << 10;

/// The longest file that is read whole.
const FILE_BYTES_MAX: usize = 256 << 20;
