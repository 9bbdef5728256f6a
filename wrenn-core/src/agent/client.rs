//! A client of one guest's agent.

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod init_tests;

use std::{
    fmt,
    sync::{
        PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientBody, ClientConfig, ClientTransport as _, full_body};
use futures::FutureExt as _;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Body as _;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use wrenn_envd::{
    ACCESS_TOKEN_HEADER, ARCHIVES_FEATURE, EventsResponse, FEATURES_HEADER, GuestEvent, InitRequest, Timestamp,
    proto::{filesystem::FilesystemClient, process::ProcessClient},
};

use crate::agent::activity::Activity;
use crate::agent::connection::{AUTHORITY, Ahead, Answer, Connections, ForTheHost};
use crate::agent::connector::Connector;
use crate::agent::error::AgentError;
use crate::agent::liveness::Liveness;
use crate::agent::words::shown;
use crate::patience::patient;

/// Talks to one guest's agent.
pub(crate) struct AgentClient {
    pub(super) calls: Connections,
    /// Connections for files, apart from those of processes: these read ahead as far as the kernel allows.
    pub(super) files: Connections,
    pub(super) processes: ProcessClient<Connections>,
    pub(super) filesystem: FilesystemClient<Connections>,
    pub(super) token: RwLock<Option<String>>,
    /// What the agent said of itself at the last [`init`](Self::init).
    archives: AtomicBool,
    activity: Activity,
    liveness: Liveness,
}

impl fmt::Debug for AgentClient {
    /// Leaves out the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentClient").field("calls", &self.calls).field("files", &self.files).finish_non_exhaustive()
    }
}

pub(super) type Result<T, E = AgentError> = std::result::Result<T, E>;

impl AgentClient {
    /// A client of the agent that `connector` reaches and that asks for `token`. It works as long as the connector is
    /// kept by its owner. No connection is made yet.
    pub(crate) fn new(connector: Weak<dyn Connector>, token: Option<String>) -> Self {
        let (activity, heard) = (Activity::new(), Activity::new());
        let calls = Connections::new(connector.clone(), Some(CALL_AHEAD), activity.clone(), heard.clone());
        let files = Connections::new(connector, None, activity.clone(), heard.clone());
        let base =
            Uri::builder().scheme(Scheme::HTTP).authority(AUTHORITY).path_and_query("/").build().unwrap_or_default();
        let processes = ProcessClient::new(calls.clone(), ClientConfig::new(base.clone()));
        let filesystem = FilesystemClient::new(calls.clone(), ClientConfig::new(base));
        Self {
            calls,
            files,
            processes,
            filesystem,
            token: RwLock::new(token),
            archives: AtomicBool::new(false),
            activity,
            liveness: Liveness::new(heard),
        }
    }

    /// The record of the guest's use.
    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// When the guest was last used: see [`Activity`].
    pub(crate) fn last_used(&self) -> Instant {
        self.activity.last_used()
    }

    /// Sets the token that calls carry from now on.
    pub(crate) fn set_token(&self, token: Option<String>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Closes every connection for good. Calls that are under way fail with [`AgentError::ConnectionLost`]. This is
    /// called before the guest ends, since a connection does not notice by itself that the guest is gone.
    pub(crate) fn close(&self) {
        self.calls.close();
        self.files.close();
    }

    /// Waits until the agent serves.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotReachable`] after `timeout`.
    pub(crate) async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        self.until(deadline, || self.call(Method::GET, "/health", HeaderMap::new(), Bytes::new())).await.map(drop)
    }

    /// Asks whether the agent answers. The call counts as a use of the guest.
    pub(crate) async fn ping(&self) -> Result<()> {
        self.activity.touch();
        self.quick_call(Method::GET, "/health", HeaderMap::new(), Bytes::new()).await.map(drop)
    }

    /// Tells the guest who it is and what time it is, before user code runs; see [`InitRequest`].
    pub(crate) async fn init(&self, request: &InitRequest) -> Result<()> {
        self.init_within(request, patient(CALL_TIMEOUT)).await
    }

    /// As [`init`](Self::init), and tries again until `timeout` where the agent cannot be reached yet, or is not ready.
    ///
    /// The request may be carried out twice. When it names a new token, calls carry that one afterwards. When it names
    /// a time, each try names the time by then.
    pub(crate) async fn init_within(&self, request: &InitRequest, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let init = || async {
            let now = request.timestamp.map(|_| Timestamp::now());
            let body: Bytes = serde_json::to_vec(&InitRequest { timestamp: now, ..request.clone() })
                .map_err(|error| AgentError::InvalidArgument { message: error.to_string() })?
                .into();
            let headers = with_token(json_headers(), self.token().as_deref())?;
            let done = self.send(Method::POST, "/init", headers, body.clone()).await;
            match (done, &request.access_token) {
                // An earlier try took effect and its answer was lost, so the guest accepts only the new token.
                (Err(AgentError::Unauthorized { .. }), Some(token)) if self.token().as_ref() != Some(token) => {
                    let headers = with_token(json_headers(), Some(token))?;
                    self.send(Method::POST, "/init", headers, body).await
                }
                (done, _) => done,
            }
        };
        let answer = self.until(deadline, init).await?;
        self.archives.store(names_feature(answer.headers(), ARCHIVES_FEATURE), Ordering::Relaxed);
        self.liveness.set_stopped(false);
        if let Some(token) = &request.access_token {
            self.set_token(Some(token.clone()).filter(|token| !token.is_empty()));
        }
        Ok(())
    }

    /// Stops every process of the guest but the agent. Until [`thaw`](Self::thaw), or an [`init`](Self::init) with
    /// entropy, none runs and none can be started.
    pub(crate) async fn freeze(&self) -> Result<()> {
        // The whole guest is stopped next. Calls that wait are not to take its silence for its end.
        self.liveness.set_stopped(true);
        self.quick_call(Method::POST, "/freeze", HeaderMap::new(), Bytes::new()).await.map(drop)
    }

    /// Lets the processes run on.
    pub(crate) async fn thaw(&self) -> Result<()> {
        self.quick_call(Method::POST, "/unfreeze", HeaderMap::new(), Bytes::new()).await?;
        self.liveness.set_stopped(false);
        Ok(())
    }

    /// The events of the guest after the event `after`. It waits for one, and returns none after 50 s.
    pub(crate) async fn events_after(&self, number: u64) -> Result<Vec<GuestEvent>> {
        let route = format!("/events?after={number}");
        let answer = self
            .bounded(Some(patient(EVENTS_TIMEOUT)), self.call(Method::GET, &route, HeaderMap::new(), Bytes::new()))
            .await?;
        let answer: EventsResponse =
            serde_json::from_slice(&answer).map_err(|error| AgentError::lost(shown(&error.to_string())))?;
        Ok(answer.events)
    }

    /// A call of the host's own that an agent answers at once.
    pub(super) async fn quick_call(
        &self,
        method: Method,
        route: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Bytes> {
        self.quick(self.call(method, route, headers, body)).await
    }

    /// Cancelled when every connection is closed for good: see [`close`](Self::close).
    pub(crate) fn closed(&self) -> CancellationToken {
        self.calls.closed()
    }

    /// A connection of its own to a port of the guest.
    pub(crate) async fn dial(&self, port: u16) -> std::io::Result<tokio::net::TcpStream> {
        let stream = self.calls.dial(port).await?;
        self.activity.touch();
        Ok(stream)
    }

    /// One plain HTTP call of the host's own, with the token; and its body.
    async fn call(&self, method: Method, route: &str, headers: HeaderMap, body: Bytes) -> Result<Bytes> {
        let headers = with_token(headers, self.token().as_deref())?;
        Ok(self.send(method, route, headers, body).await?.into_body())
    }

    async fn send(&self, method: Method, route: &str, headers: HeaderMap, body: Bytes) -> Result<Response<Bytes>> {
        let mut request = compose(method, route, headers, full_body(body))?;
        request.extensions_mut().insert(ForTheHost);
        let (head, body) = answered(&self.calls, request).await?.into_parts();
        let body = collected(body, ANSWER_BYTES_MAX).await?;
        Ok(Response::from_parts(head, body))
    }

    /// Repeats a call until `deadline` while the agent cannot be reached or is not ready.
    async fn until<T, F: Future<Output = Result<T>>>(&self, deadline: Instant, call: impl Fn() -> F) -> Result<T> {
        let mut last = None;
        loop {
            self.calls.open(deadline).await?;
            match timeout_at(deadline, call()).await {
                Ok(Err(error)) if error.is_retryable() && Instant::now() + RETRY_PAUSE < deadline => {
                    last = Some(error);
                    sleep(RETRY_PAUSE).await;
                }
                Ok(answered) => return answered,
                Err(_) => return Err(last.unwrap_or_else(out_of_time)),
            }
        }
    }

    /// Does `call`, and gives it up after `limit` where there is one, or when the agent no longer answers at all.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unresponsive`] after `limit`, and half a minute after the guest has fallen silent.
    ///
    /// # Cancel-Safety
    ///
    /// As `call`.
    pub(crate) fn bounded<'a, T: 'a>(
        &'a self,
        limit: Option<Duration>,
        call: impl Future<Output = Result<T>> + Send + 'a,
    ) -> impl Future<Output = Result<T>> + Send + 'a {
        let began = Instant::now();
        // The future of a call takes many kilobytes, and each layer around it would take as many again.
        let call = call.boxed();
        async move {
            let over = async {
                match limit.and_then(|limit| began.checked_add(limit)) {
                    Some(end) => sleep_until(end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                result = call => return result,
                () = over => {}
                () = self.until_silent() => {}
            }
            Err(AgentError::Unresponsive { after: began.elapsed() })
        }
    }

    /// As [`bounded`](Self::bounded), with the limit for calls that an agent answers at once.
    pub(super) fn quick<'a, T: 'a>(
        &'a self,
        call: impl Future<Output = Result<T>> + Send + 'a,
    ) -> impl Future<Output = Result<T>> + Send + 'a {
        self.bounded(Some(patient(CALL_TIMEOUT)), call)
    }

    /// Waits until the agent does not answer any more.
    pub(crate) async fn until_silent(&self) {
        let probe = || {
            let asked = self.call(Method::GET, "/health", HeaderMap::new(), Bytes::new());
            // A refusal shows too that the agent answers.
            async { asked.await.map_or_else(|error| !error.is_unanswered(), |_| true) }.boxed()
        };
        self.liveness.until_silent(probe).await;
    }

    /// Whether the agent packs and unpacks archives; an earlier one does not.
    pub(super) fn has_archives(&self) -> bool {
        self.archives.load(Ordering::Relaxed)
    }

    /// The token that calls carry now.
    pub(crate) fn token(&self) -> Option<String> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn options(&self) -> Result<CallOptions> {
        match self.token() {
            Some(token) => with_header(CallOptions::default(), ACCESS_TOKEN_HEADER, &token),
            None => Ok(CallOptions::default()),
        }
    }

    /// For calls on behalf of one of the guest's users.
    pub(super) fn options_of(&self, user: Option<&str>) -> Result<CallOptions> {
        let options = self.options()?;
        match user {
            Some(user) => {
                let credentials = format!("Basic {}", STANDARD.encode(format!("{user}:")));
                with_header(options, AUTHORIZATION.as_str(), &credentials)
            }
            None => Ok(options),
        }
    }
}

/// Sends a request, and gives the answer when its body begins; one that refuses is an error.
pub(super) async fn ask(
    connections: &Connections,
    method: Method,
    route: &str,
    headers: HeaderMap,
    body: ClientBody,
) -> Result<Response<Answer>> {
    answered(connections, compose(method, route, headers, body)?).await
}

async fn answered(connections: &Connections, request: Request<ClientBody>) -> Result<Response<Answer>> {
    let answer = connections.send(request).await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    Err(AgentError::from_status(status, &collected(answer.into_body(), ANSWER_BYTES_MAX).await?))
}

fn compose(method: Method, route: &str, headers: HeaderMap, body: ClientBody) -> Result<Request<ClientBody>> {
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(Authority::from_static(AUTHORITY));
    let invalid = |error: http::Error| AgentError::InvalidArgument { message: error.to_string() };
    let route: PathAndQuery = route.parse().map_err(|error: http::uri::InvalidUri| invalid(error.into()))?;
    let uri = uri.path_and_query(route).build().map_err(invalid)?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Reads all of an answer, and fails where it has more than `limit_bytes`.
pub(super) async fn collected(answer: Answer, limit_bytes: usize) -> Result<Bytes> {
    if answer.size_hint().lower() > limit_bytes as u64 {
        return Err(AgentError::TooLong { limit_bytes });
    }
    let body = Limited::new(answer, limit_bytes).collect().await;
    Ok(body.map_err(|error| AgentError::cut(error, limit_bytes))?.to_bytes())
}

pub(super) fn with_header(options: CallOptions, name: &str, value: &str) -> Result<CallOptions> {
    options.try_with_header(name, value).map_err(|error| AgentError::InvalidArgument { message: error.to_string() })
}

pub(super) fn with_token(mut headers: HeaderMap, token: Option<&str>) -> Result<HeaderMap> {
    if let Some(token) = token {
        let mut value: HeaderValue = token
            .parse()
            .map_err(|_| AgentError::InvalidArgument { message: "the access token cannot be a header".to_owned() })?;
        value.set_sensitive(true);
        headers.insert(ACCESS_TOKEN_HEADER, value);
    }
    Ok(headers)
}

/// Whether an agent's answer to `POST /init` names a feature.
fn names_feature(headers: &HeaderMap, feature: &str) -> bool {
    let named = headers.get_all(FEATURES_HEADER).into_iter().filter_map(|value| value.to_str().ok());
    named.flat_map(|names| names.split(',')).any(|name| name.trim() == feature)
}

fn json_headers() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))])
}

/// Percent-encodes everything that a query could mistake.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                escaped.push(char::from(byte))
            }
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

pub(super) fn out_of_time() -> AgentError {
    AgentError::TimedOut { message: "it did not answer".to_owned() }
}

/// How much of an answer may be buffered between the agent and its reader, so that a slow reader makes its process
/// wait. This and what the agent buffers for a slow reader are together less than the output that the agent keeps of a
/// process. So a reader whose connection breaks finds everything that it had not read.
const CALL_AHEAD: Ahead = Ahead { kernel_bytes: 192 << 10, bytes: 128 << 10 };

/// For calls that an agent answers at once; a guest under emulation and load may be slow about it.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The agent answers after 50 s at the latest.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(80);
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Of an answer that is not a file.
pub(super) const ANSWER_BYTES_MAX: usize = 1 << 20;
