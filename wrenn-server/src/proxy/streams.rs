//! Streams of a guest's agent that outlive a pause: the output of processes and terminals, and watches.
//!
//! ```text
//!  open ──▶ attached ──next──▶ a frame for the client
//!             │    ▲
//!   the pause │    │ runs_again: Connect from the offset of what came last; or the same watch once more
//!             ▼    │
//!            broken ──keepalive──▶ a sign of life for the client
//!              └─ the sandbox is over ──▶ the stream's end says so
//! ```
//!
//! A client of E2B's counts no output, so that this counts for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use futures::stream;
use tokio::time::sleep;
use wrenn_core::SandboxId;

use crate::proxy::agent;
use crate::proxy::answer::Unreached;
use crate::proxy::carry::{Carrier, carry, readdress};
use crate::proxy::connector::authority;
use crate::proxy::frames::{Frame, Frames, only};
use crate::proxy::words::{Codec, Told};
use crate::service::cut::Cut;
use crate::service::sandboxes::Sandboxes;
use crate::service::sandboxes::reach::Reached;

/// A request for a stream that can be kept.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    codec: Codec,
    kind: Kind,
    /// The one message of the request.
    message: Bytes,
    headers: HeaderMap,
    path: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Start,
    Connect,
    Watch,
}

/// A stream that goes on.
struct Kept {
    wanted: Wanted,
    sandboxes: Arc<Sandboxes>,
    carrier: Carrier,
    cut: Arc<Cut>,
    id: SandboxId,
    frames: Option<Frames>,
    /// Known from the first event on.
    pid: Option<u32>,
    /// One past the last byte of output that came.
    offset: u64,
    has_started: bool,
    has_ended: bool,
    /// How often the agent of a sandbox that runs was not reached since the last frame.
    failures: u32,
}

impl Kind {
    fn of(path: &str) -> Option<Self> {
        match path {
            "/process.Process/Start" => Some(Self::Start),
            CONNECT => Some(Self::Connect),
            "/filesystem.Filesystem/WatchDir" => Some(Self::Watch),
            _ => None,
        }
    }
}

impl Wanted {
    /// Whether a request is for a stream that can be kept.
    pub(super) fn is_one(path: &str, headers: &HeaderMap) -> bool {
        let is_plain = headers.get("connect-content-encoding").is_none_or(|encoding| encoding == "identity");
        Kind::of(path).is_some() && Codec::of(headers).is_some() && is_plain
    }

    /// The stream that a request wants, as the agent is to be asked for it; `None` where it has no single message.
    pub(super) fn of(path: &str, headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        let (kind, codec) = (Kind::of(path)?, Codec::of(headers)?);
        let message = only(body).filter(|frame| !frame.is_compressed())?.message;
        let message = match kind {
            Kind::Start => codec.counted_start(&message)?,
            Kind::Connect => codec.counted_connect(&message)?,
            Kind::Watch => message,
        };
        let mut headers = headers.clone();
        for of_the_body in ["content-length", "transfer-encoding", "connect-accept-encoding"] {
            headers.remove(of_the_body);
        }
        Some(Self { codec, kind, message, headers, path: path.to_owned() })
    }

    fn keepalive(&self) -> Frame {
        Frame::message(match self.kind {
            Kind::Start | Kind::Connect => self.codec.keepalive(),
            Kind::Watch => self.codec.watch_keepalive(),
        })
    }

    /// How long the client waits for a sign of life.
    fn keepalive_interval(&self) -> Duration {
        let asked = self.headers.get("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.parse().ok());
        Duration::from_secs(asked.filter(|seconds| (1..=KEEPALIVE_SEC).contains(seconds)).unwrap_or(KEEPALIVE_SEC))
    }
}

/// Opens a stream, and keeps it.
///
/// # Errors
/// Why the agent was not reached.
pub(super) async fn open(
    mut wanted: Wanted,
    sandboxes: Arc<Sandboxes>,
    carrier: Carrier,
    cut: Arc<Cut>,
    reached: &Reached,
) -> Result<Response<Body>, Unreached> {
    if wanted.kind == Kind::Connect
        && let Some(pid) = wanted.codec.connected_pid(&wanted.message)
        && let Some(offset) = cut.take(&reached.record.id, pid)
    {
        wanted.message = wanted.codec.connect_from(pid, offset);
    }
    let request = request(&wanted, &wanted.path, wanted.message.clone(), reached)?;
    let response = carry(&carrier, request, sandboxes.meters()).await?;
    if response.status() != StatusCode::OK {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let kept = Kept {
        wanted,
        sandboxes,
        carrier,
        cut,
        id: reached.record.id.clone(),
        frames: Some(Frames::of(body)),
        pid: None,
        offset: 0,
        has_started: false,
        has_ended: false,
        failures: 0,
    };
    let frames = stream::unfold(kept, async |mut kept| {
        let frame = kept.next().await?;
        Some((Ok::<_, io::Error>(frame.to_bytes()), kept))
    });
    Ok(Response::from_parts(parts, Body::from_stream(frames)))
}

fn request(wanted: &Wanted, path: &str, message: Bytes, reached: &Reached) -> Result<Request<Body>, Unreached> {
    let mut request = Request::new(Body::from(Frame::message(message).to_bytes()));
    *request.method_mut() = Method::POST;
    *request.headers_mut() = wanted.headers.clone();
    agent::credentials(request.headers_mut(), reached)?;
    readdress(&mut request, authority(reached, wrenn_envd::AGENT_PORT), path)?;
    Ok(request)
}

impl Kept {
    /// The next frame for the client; `None` after the last one.
    async fn next(&mut self) -> Option<Frame> {
        while !self.has_ended {
            let told = match &mut self.frames {
                Some(frames) => match frames.next().await {
                    Ok(Some(frame)) => {
                        self.failures = 0;
                        self.take(frame)
                    }
                    // An end has a frame of its own.
                    Ok(None) | Err(_) => {
                        self.frames = None;
                        None
                    }
                },
                None => self.go_on().await,
            };
            if told.is_some() {
                return told;
            }
        }
        None
    }

    /// Counts what came, and gives what of it is for the client.
    fn take(&mut self, frame: Frame) -> Option<Frame> {
        if frame.is_end() {
            self.has_ended = true;
            return Some(frame);
        }
        let (codec, is_first) = (self.wanted.codec, !self.has_started);
        if self.wanted.kind == Kind::Watch {
            let is_start = codec.is_watch_start(&frame.message);
            self.has_started |= is_start;
            return (!is_start || is_first).then_some(frame);
        }
        match codec.told(&frame.message) {
            Some(Told::Start { pid, offset }) => {
                self.has_started = true;
                if is_first {
                    (self.pid, self.offset) = (Some(pid), offset);
                }
                is_first.then(|| Frame::message(codec.start(pid)))
            }
            Some(Told::Output(bytes)) => {
                self.offset = self.offset.saturating_add(bytes);
                Some(frame)
            }
            Some(Told::Lost { until }) => {
                self.offset = until;
                None
            }
            Some(Told::End(message)) => Some(Frame::message(message)),
            Some(Told::Other) | None => Some(frame),
        }
    }

    /// Waits until the sandbox runs, and attaches again. Gives what the client is told meanwhile, if anything.
    async fn go_on(&mut self) -> Option<Frame> {
        let (path, message) = match (self.wanted.kind, self.pid) {
            (Kind::Watch, _) => (self.wanted.path.clone(), self.wanted.message.clone()),
            (_, Some(pid)) => (CONNECT.to_owned(), self.wanted.codec.connect_from(pid, self.offset)),
            // Whether it has started is not known.
            (_, None) => return self.end("the connection to the sandbox broke before the process was known"),
        };
        let keepalive = sleep(self.wanted.keepalive_interval());
        let reached = tokio::select! {
            reached = self.sandboxes.runs_again(&self.id) => reached,
            () = keepalive => return Some(self.wanted.keepalive()),
        };
        let Some(reached) = reached else {
            let is_closing = self.sandboxes.is_closing();
            if let Some(pid) = self.pid.filter(|_| is_closing) {
                self.cut.note(&self.id, pid, self.offset);
            }
            return self.end(if is_closing { "the server is being shut down" } else { "the sandbox is over" });
        };
        let Ok(mut request) = request(&self.wanted, &path, message, &reached) else {
            return self.end("the agent cannot be asked");
        };
        // The agent has counted the time of the process since its start.
        request.headers_mut().remove("connect-timeout-ms");
        match carry(&self.carrier, request, self.sandboxes.meters()).await {
            Ok(response) if response.status() == StatusCode::OK => {
                self.frames = Some(Frames::of(response.into_body()));
                None
            }
            Ok(_) => self.end("the agent does not know of it any more"),
            Err(_) if self.failures == FAILURES_MAX => self.end("the sandbox runs, and its agent does not answer"),
            // It is being paused, or has just begun to run.
            Err(_) => {
                self.failures += 1;
                sleep(BREATH).await;
                None
            }
        }
    }

    fn end(&mut self, message: &str) -> Option<Frame> {
        self.has_ended = true;
        Some(Frame::error("unavailable", message))
    }
}

/// E2B's agent does it each 90 seconds.
const KEEPALIVE_SEC: u64 = 90;
const CONNECT: &str = "/process.Process/Connect";
const BREATH: Duration = Duration::from_millis(20);
/// Half a minute and what the attempts take.
const FAILURES_MAX: u32 = 1500;
