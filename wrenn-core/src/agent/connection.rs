use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use connectrpc::client::{BoxFuture, ClientBody, ClientTransport};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};
use wrenn_envd::AGENT_PORT;

/// Opens a socket to a port of the guest, from inside the sandbox's network namespace.
pub(crate) trait Connector: Send + Sync {
    fn connect(&self, port: u16) -> futures::future::BoxFuture<'_, io::Result<TcpStream>>;
}

/// One HTTP/2 connection to the agent, which is opened when it is needed and again when it has broken.
#[derive(Clone)]
pub(super) struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    /// The guest owns its network: a handle that outlives it must not keep it.
    connector: Weak<dyn Connector>,
    /// Held while a connection is opened, so that callers share the attempt.
    opening: tokio::sync::Mutex<()>,
    open: Mutex<Option<Open>>,
}

/// Dropping it closes the connection.
struct Open {
    sender: SendRequest<ClientBody>,
    tasks: Tasks,
}

/// The tasks that drive one connection, and end with it.
#[derive(Clone, Default)]
struct Tasks {
    handles: Arc<Mutex<Vec<AbortHandle>>>,
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let handle = tokio::spawn(task).abort_handle();
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.retain(|handle| !handle.is_finished());
        handles.push(handle);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for handle in self.tasks.handles.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            handle.abort();
        }
    }
}

/// Why a request was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the agent cannot be reached")]
    NotReachable(#[source] io::Error),
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("is_open", &self.shared.lock().is_some()).finish()
    }
}

impl Connection {
    pub(super) fn new(connector: Weak<dyn Connector>) -> Self {
        let shared = Shared { connector, opening: tokio::sync::Mutex::default(), open: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Closes the connection; what is under way on it fails. The next request opens a new one.
    pub(super) fn close(&self) {
        *self.shared.lock() = None;
    }

    /// A connection of its own to any port of the guest.
    pub(super) async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        self.shared.dial(port).await
    }

    /// Opens the connection if it is not open; tries again until `deadline`.
    pub(super) async fn open(&self, deadline: Instant) -> Result<(), SendError> {
        self.sender(deadline).await.map(drop)
    }

    async fn sender(&self, deadline: Instant) -> Result<SendRequest<ClientBody>, SendError> {
        let mut backoff = BACKOFF_MIN;
        let _opening = self.shared.opening.lock().await;
        loop {
            if let Some(open) = self.shared.lock().as_ref().filter(|open| !open.sender.is_closed()) {
                return Ok(open.sender.clone());
            }
            let attempt_end = deadline.min(Instant::now() + ATTEMPT_MAX);
            let error = match timeout_at(attempt_end, self.shared.connect()).await {
                Ok(Ok(open)) => {
                    let sender = open.sender.clone();
                    *self.shared.lock() = Some(open);
                    return Ok(sender);
                }
                Ok(Err(error)) => error,
                Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the agent does not answer"),
            };
            if Instant::now() + backoff >= deadline {
                return Err(SendError::NotReachable(error));
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn request(&self, request: Request<ClientBody>) -> Result<Response<Incoming>, SendError> {
        let mut request = request;
        // A connection that has just been found broken gives the request back, unsent; another is tried then.
        for _ in 0..2 {
            let mut sender = self.sender(Instant::now() + CONNECT_MAX).await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
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

impl ClientTransport for Connection {
    type ResponseBody = Incoming;
    type Error = SendError;

    fn send(&self, request: Request<ClientBody>) -> BoxFuture<'static, Result<Response<Incoming>, SendError>> {
        let connection = self.clone();
        Box::pin(async move { connection.request(request).await })
    }
}

impl Shared {
    async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the sandbox's network is gone");
        self.connector.upgrade().ok_or_else(gone)?.connect(port).await
    }

    async fn connect(&self) -> io::Result<Open> {
        let stream = self.dial(AGENT_PORT).await?;
        stream.set_nodelay(true)?;
        let tasks = Tasks::default();
        let mut builder = http2::Builder::new(tasks.clone());
        builder.timer(TokioTimer::new());
        builder.initial_stream_window_size(WINDOW_BYTES).initial_connection_window_size(ALL_WINDOWS_BYTES);
        // Each frame costs the guest a call: a piece of output fits into one.
        builder.max_frame_size(WINDOW_BYTES);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tasks.execute(async move {
            // Whoever waits on it hears of its end.
            let _ = connection.await;
        });
        let open = Open { sender: sender.clone(), tasks };
        sender.ready().await.map_err(io::Error::other)?;
        Ok(open)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt to connect: a lost packet costs the kernel a second, and a new attempt nothing.
const ATTEMPT_MAX: Duration = Duration::from_millis(500);
/// All attempts of a request whose connection is gone.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(2);
const BACKOFF_MAX: Duration = Duration::from_millis(50);

/// How much of an answer may be under way: a slow reader holds its process back, not the host's memory. With what the
/// agent has in hand for a slow reader this is less than the agent keeps of a process's output, so that a reader whose
/// connection breaks comes back in time for what it had not read.
const WINDOW_BYTES: u32 = 192 << 10;
/// All answers together: no number of readers that stand still shall hold up another.
const ALL_WINDOWS_BYTES: u32 = (1 << 31) - 1;
