use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use http::{HeaderValue, Request, Response, Uri, header::HOST};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::TcpStream,
    runtime::Handle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wrenn_envd::AGENT_PORT;

use crate::agent::activity::{Activity, InUse};
use crate::agent::connector::Connector;
use crate::patience::patient;

/// The connections to the agent, over HTTP/1.1: one for each call that is under way, and some that wait for the next
/// call.
///
/// ```text
///  request -> an idle one, or a new one -> the answer begins -> it is read to its end -> idle
///                                                |
///                                                +- it is dropped, and goes on for more than a moment -> closed
/// ```
///
/// HTTP/2 would need one connection for all calls, and costs an emulated guest about a millisecond more for each call.
#[derive(Clone)]
pub(super) struct Connections {
    shared: Arc<Shared>,
}

struct Shared {
    /// A weak reference, since the guest owns its network: a client that outlives the guest must not keep the network.
    connector: Weak<dyn Connector>,
    ahead: Option<Ahead>,
    /// The one that was used last comes last.
    idle: Mutex<Vec<Idle>>,
    /// The tasks that read the rest of answers that were dropped.
    finishing: TaskTracker,
    closed: CancellationToken,
    activity: Activity,
    /// Of whatever comes from the guest.
    heard: Activity,
}

/// Marks a request of wrenn's own, which does not count as a use of the guest: see [`Activity`].
#[derive(Clone, Copy, Debug)]
pub(super) struct ForTheHost;

type Sender = SendRequest<ClientBody>;

struct Idle {
    sender: Sender,
    since: Instant,
}

/// How much of an answer may be buffered before it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// In the kernel.
    pub(super) kernel_bytes: usize,
    /// Here.
    pub(super) bytes: usize,
}

/// The body of an answer; nothing, once that has ended.
pub(crate) struct Answer(Option<Flow>);

/// Dropping it closes the connection.
struct Flow {
    body: Incoming,
    sender: Sender,
    shared: Arc<Shared>,
    /// The guest is in use for as long as the answer is read.
    _use: Option<InUse>,
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the agent cannot be reached")]
    NotReachable(#[source] io::Error),
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("idle", &self.shared.lock().len()).finish_non_exhaustive()
    }
}

impl Connections {
    /// Sets how much is read ahead. Without this, the kernel decides.
    pub(super) fn new(
        connector: Weak<dyn Connector>,
        ahead: Option<Ahead>,
        activity: Activity,
        heard: Activity,
    ) -> Self {
        let finishing = TaskTracker::new();
        finishing.close();
        let closed = CancellationToken::new();
        let shared = Shared { connector, ahead, idle: Mutex::default(), finishing, closed, activity, heard };
        Self { shared: Arc::new(shared) }
    }

    /// Closes every connection, for good; what is under way fails.
    pub(super) fn close(&self) {
        self.shared.closed.cancel();
        self.shared.lock().clear();
    }

    /// Cancelled by [`close`](Self::close).
    pub(super) fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// A connection of its own to any port of the guest.
    pub(super) async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        self.shared.dial(port).await
    }

    /// Makes sure that there is a connection, and tries until `deadline`.
    pub(super) async fn open(&self, deadline: Instant) -> Result<(), SendError> {
        let sender = self.sender(deadline).await?;
        self.shared.keep(sender);
        Ok(())
    }

    async fn sender(&self, deadline: Instant) -> Result<Sender, SendError> {
        if let Some(sender) = self.shared.idle_sender().await {
            return Ok(sender);
        }
        let mut backoff = BACKOFF_MIN;
        loop {
            let attempt_end = deadline.min(Instant::now() + patient(ATTEMPT_MAX));
            let error = match timeout_at(attempt_end, self.shared.connect()).await {
                Ok(Ok(sender)) => return Ok(sender),
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the agent does not answer"),
            };
            if Instant::now() + backoff >= deadline || self.shared.closed.is_cancelled() {
                return Err(SendError::NotReachable(error));
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn request(&self, request: Request<ClientBody>) -> Result<Response<Answer>, SendError> {
        let mut request = in_origin_form(request);
        let for_the_host = request.extensions().get::<ForTheHost>().is_some();
        let in_use = (!for_the_host).then(|| self.shared.activity.begin());
        // A connection that is found broken before anything was sent gives the request back, and another connection is
        // tried.
        for _ in 0..TRIES {
            let mut sender = self.sender(Instant::now() + patient(CONNECT_MAX)).await?;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.shared.heard.touch();
                    let shared = Arc::clone(&self.shared);
                    return Ok(response.map(|body| Answer::new(Flow { body, sender, shared, _use: in_use })));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(error.into_error())),
                },
            }
        }
        let closed = io::Error::new(io::ErrorKind::ConnectionAborted, "the agent closes every connection");
        Err(SendError::NotReachable(closed))
    }
}

/// As HTTP/1.1 has it: the authority is a header.
fn in_origin_form(mut request: Request<ClientBody>) -> Request<ClientBody> {
    request.headers_mut().insert(HOST, HeaderValue::from_static(AUTHORITY));
    if let Some(route) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(route);
    }
    request
}

impl ClientTransport for Connections {
    type ResponseBody = Answer;
    type Error = SendError;

    fn send(&self, request: Request<ClientBody>) -> BoxFuture<'static, Result<Response<Answer>, SendError>> {
        let connections = self.clone();
        Box::pin(async move { connections.request(request).await })
    }
}

impl Shared {
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the sandbox's network is gone");
        let stream = self.connector.upgrade().ok_or_else(gone)?.connect(port).await?;
        // A guest may forget a connection while its network is down. A reader of that connection would wait for ever.
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
        setsockopt(&stream, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
        Ok(stream)
    }

    async fn connect(&self) -> io::Result<Sender> {
        if self.closed.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the sandbox was stopped"));
        }
        let stream = self.dial(AGENT_PORT).await?;
        stream.set_nodelay(true)?;
        let mut builder = http1::Builder::new();
        if let Some(Ahead { kernel_bytes, bytes }) = self.ahead {
            setsockopt(&stream, sockopt::RcvBuf, &kernel_bytes)?;
            builder.max_buf_size(bytes);
        }
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // The end of the connection wakes its readers. A connection that was opened while all were being closed ends at
        // once.
        tokio::spawn(self.closed.clone().run_until_cancelled_owned(connection));
        Ok(sender)
    }

    async fn idle_sender(&self) -> Option<Sender> {
        if self.lock().is_empty() && !self.finishing.is_empty() {
            // The last call's is back in less time than a new one takes; or it was dropped for good.
            let _ = timeout(BACK_MAX, self.finishing.wait()).await;
        }
        loop {
            let Idle { mut sender, since } = self.lock().pop()?;
            // Nor is one kept that has not sent its whole request.
            if since.elapsed() < IDLE_MAX && matches!(timeout(BACK_MAX, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.lock();
        if idle.len() < IDLE_CONNECTIONS_MAX && !self.closed.is_cancelled() {
            idle.push(Idle { sender, since: Instant::now() });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer {
    fn new(flow: Flow) -> Self {
        let mut this = Self(Some(flow));
        this.keep_if_ended();
        this
    }

    fn keep_if_ended(&mut self) {
        if let Some(Flow { sender, shared, .. }) = self.0.take_if(|flow| flow.body.is_end_stream()) {
            shared.keep(sender);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(flow) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut flow.body).poll_frame(context));
        match &frame {
            Some(Ok(_)) => {
                flow.shared.heard.touch();
                self.keep_if_ended();
            }
            Some(Err(_)) => self.0 = None,
            None => {
                if let Some(Flow { sender, shared, .. }) = self.0.take() {
                    shared.keep(sender);
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |flow| flow.body.size_hint())
    }
}

impl Drop for Answer {
    /// A reader that stops at the last message of a stream has not read the stream's end, which comes right after it.
    fn drop(&mut self) {
        if let (Some(flow), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            flow.shared.finishing.clone().spawn_on(flow.finish(), &runtime);
        }
    }
}

impl Flow {
    async fn finish(mut self) {
        let rest = Limited::new(&mut self.body, REST_BYTES_MAX).collect();
        if matches!(timeout(REST_MAX, rest).await, Ok(Ok(_))) {
            self.shared.keep(self.sender);
        }
    }
}

/// One attempt to connect: a lost packet costs the kernel a second, and a new attempt nothing.
const ATTEMPT_MAX: Duration = Duration::from_millis(500);
/// All attempts of a request whose connection is gone.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const TRIES: usize = 3;
const BACKOFF_MIN: Duration = Duration::from_millis(2);
const BACKOFF_MAX: Duration = Duration::from_millis(50);

/// How long a connection waits for the next call. An agent closes one after 30 s.
const IDLE_MAX: Duration = Duration::from_secs(20);
const IDLE_CONNECTIONS_MAX: usize = 8;

/// How long the end of an answer may take after its last message, and how long it may be.
const REST_MAX: Duration = Duration::from_millis(20);
const REST_BYTES_MAX: usize = 4 << 10;
/// How long a connection may take that should be idle, before another is opened.
const BACK_MAX: Duration = Duration::from_millis(2);

/// TCP keep-alive: how long a connection may be silent before the host's kernel probes the guest's, the time between
/// two probes, and how many unanswered probes end the connection.
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_INTERVAL_S: u32 = 10;
const KEEPALIVE_COUNT: u32 = 6;

/// HTTP needs a host name. The guest has none here, since the connector knows how to reach it.
pub(super) const AUTHORITY: &str = "guest";
