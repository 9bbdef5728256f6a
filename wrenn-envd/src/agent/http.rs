//! HTTP/1.1 and HTTP/2 on one port: plain routes, and Connect beside them.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use connectrpc::{ConnectRpcService, Dispatcher, Limits};
use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

use super::{
    admission::{Admission, Admitted, Peer},
    answer::{Body, empty, json, refused},
    api_error::ApiError,
    cgroups::Groups,
    console::complain,
    events, files, filesystem,
    freezer::{FreezeError, Thaw},
    init,
    lifecycle::Lifecycle,
    metrics::Metrics,
    mmds::Mmds,
    options::Mode,
    process,
    settings::Settings,
    setup, sys,
};
use crate::proto::{filesystem::FilesystemServer, process::ProcessServer};

/// The agent's server.
pub(super) struct Server {
    mode: Mode,
    mmds: Option<Mmds>,
    admission: Admission,
    settings: Arc<Mutex<Settings>>,
    lifecycle: Lifecycle,
    processes: ConnectRpcService<ProcessServer<process::Service>>,
    filesystem: ConnectRpcService<FilesystemServer<filesystem::Service>>,
    metrics: Metrics,
}

impl Server {
    pub(super) fn new(
        mode: Mode,
        mmds: Option<Mmds>,
        admission: Admission,
        groups: Arc<Groups>,
        lifecycle: Lifecycle,
    ) -> Arc<Self> {
        let settings = Arc::<Mutex<Settings>>::default();
        let (table, freezer) = (lifecycle.hooks.table.clone(), lifecycle.freezer.clone());
        let service = process::Service { table, settings: settings.clone(), freezer, groups };
        let limits = Limits::default().with_max_request_body_size(RPC_BYTES_MAX).with_max_message_size(RPC_BYTES_MAX);
        let processes = ConnectRpcService::new(ProcessServer::new(service)).with_limits(limits);
        let service = filesystem::Service::new(settings.clone());
        let filesystem = ConnectRpcService::new(FilesystemServer::new(service)).with_limits(limits);
        let metrics = Metrics::default();
        Arc::new(Self { mode, mmds, admission, settings, lifecycle, processes, filesystem, metrics })
    }

    /// Accepts connections for ever.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    // One too many is closed at once.
                    if let Some(admitted) = self.admission.admit(peer.ip()) {
                        tokio::spawn(self.clone().serve_connection(stream, admitted));
                    }
                }
                // Out of descriptors, most likely: some will be closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Ends every process and switches the guest off. Returns only if the kernel refuses.
    pub(super) async fn shut_down(&self) {
        // Who is frozen cannot end, and what is frozen cannot be flushed.
        if let Err(error) = self.lifecycle.freezer.thaw(Thaw::AsItself) {
            complain(&format!("thaw the guest: {error}"));
        }
        if let Err(error) = self.lifecycle.drive.thaw_if_any().await {
            complain(&format!("thaw the drive: {error}"));
        }
        init::shut_down().await;
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, admitted: Admitted) {
        let peer = admitted.peer;
        // Answers are small and awaited; one that waits for more to send only waits. Without
        // either a connection serves less well, and that is all.
        let _ = stream.set_nodelay(true);
        let _ = sys::limit_unsent(&stream, SENT_AHEAD_BYTES);
        let mut restores = self.lifecycle.restores.subscribe();
        let announced = Arc::new(Mutex::new(*restores.borrow_and_update()));
        let known = announced.clone();
        let service = service_fn(move |request| {
            let (server, known) = (self.clone(), known.clone());
            async move { Ok::<_, Infallible>(server.answer(request, peer, &known).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(REQUEST_MAX).max_buf_size(SENT_AHEAD_BYTES);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .max_send_buf_size(SENT_AHEAD_BYTES)
            .max_concurrent_streams(if peer == Peer::Host { STREAMS_MAX } else { GUEST_STREAMS_MAX })
            .keep_alive_interval(Duration::from_secs(20))
            // The clock of a guest that was stopped may have gone on meanwhile, and its client is still there.
            .keep_alive_timeout(Duration::from_secs(180));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        loop {
            tokio::select! {
                // Who waits to hear of the restore is answered before the connection is closed because of it.
                biased;
                // A connection that breaks is its client's to notice.
                _ = connection.as_mut() => return,
                changed = restores.changed() => {
                    let restore = *restores.borrow_and_update();
                    let is_known = *announced.lock().unwrap_or_else(PoisonError::into_inner) == restore;
                    if changed.is_err() || !is_known { return }
                }
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: Peer, known_restore: &Mutex<u64>) -> Response<Body> {
        if (request.method(), request.uri().path()) == (&Method::GET, "/health") {
            return empty(StatusCode::NO_CONTENT);
        }
        if request.uri().path() == "/files" {
            return files::answer(&self.settings, request).await.unwrap_or_else(|refusal| refused(&refusal));
        }
        let authorized = match (request.method(), request.uri().path()) {
            // It may come with another proof, which is in its body.
            (&Method::POST, "/init") => Ok(()),
            _ => self.settings().authorize(request.headers()),
        };
        let answered = match authorized {
            Err(refusal) => Err(refusal),
            Ok(()) if request.uri().path().starts_with(PROCESS_PREFIX) => {
                Ok(answer_rpc(&self.processes, request).await)
            }
            Ok(()) if request.uri().path().starts_with(FILESYSTEM_PREFIX) => {
                Ok(answer_rpc(&self.filesystem, request).await)
            }
            Ok(()) => self.answer_plain(request, peer, known_restore).await,
        };
        answered.unwrap_or_else(|refusal| refused(&refusal))
    }

    async fn answer_plain(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        known_restore: &Mutex<u64>,
    ) -> Result<Response<Body>, ApiError> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/init") => {
                let trust = || self.admission.trust(peer);
                let order = setup::Order::receive(self.mmds, &self.settings, trust, request).await?;
                let thawed = self.lifecycle.drive.thaw_if_any().await.map_err(|error| refuse_freeze(&error))?;
                let restored = order.carry_out(self.mode, &self.settings)?;
                drop(thawed);
                if let Some(event) = restored {
                    let restore = self.lifecycle.restored(event).await.map_err(|error| refuse_freeze(&error))?;
                    *known_restore.lock().unwrap_or_else(PoisonError::into_inner) = restore;
                }
                Ok(setup::initialized())
            }
            (&Method::POST, "/freeze") => done(self.lifecycle.freeze().await),
            (&Method::POST, "/unfreeze") => done(self.lifecycle.unfreeze().await),
            (&Method::POST, "/fsfreeze") => done(self.lifecycle.drive.freeze().await),
            (&Method::POST, "/fsthaw") => done(self.lifecycle.drive.thaw().await),
            (&Method::GET, "/events") => {
                json(&self.lifecycle.events.after(events::parse_query(request.uri().query())?).await)
            }
            (&Method::GET, "/envs") => json(&self.settings().environment()),
            (&Method::GET, "/metrics") => json(&self.metrics.sample()),
            (&Method::POST, "/files/compose") => files::compose(&self.settings, request).await,
            (&Method::POST, "/files/unpack") => files::unpack(&self.settings, request).await,
            (&Method::GET, "/files/pack") => files::pack(&self.settings, &request).await,
            (method, path) => Err(ApiError::new(StatusCode::NOT_FOUND, format!("no route {method} {path}"))),
        }
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer_rpc<D: Dispatcher>(service: &ConnectRpcService<D>, request: Request<Incoming>) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    if head.uri.path() == START
        && let Some(limit) = process::take_time_limit(&mut head.headers)
    {
        head.extensions.insert(limit);
    }
    let request = Request::from_parts(head, body);
    match service.clone().oneshot(request).await {
        Ok(response) => response.map(|body| body.map_err(|never: Infallible| match never {}).boxed_unsync()),
        Err(never) => match never {},
    }
}

fn done(result: Result<(), FreezeError>) -> Result<Response<Body>, ApiError> {
    result.map(|()| empty(StatusCode::NO_CONTENT)).map_err(|error| refuse_freeze(&error))
}

fn refuse_freeze(error: &FreezeError) -> ApiError {
    let status = match error {
        FreezeError::NoGroup | FreezeError::NoDrive => StatusCode::NOT_IMPLEMENTED,
        FreezeError::TimedOut(_) => StatusCode::SERVICE_UNAVAILABLE,
        FreezeError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}

const PROCESS_PREFIX: &str = "/process.Process/";
/// Its time is the process's, and not the call's.
const START: &str = "/process.Process/Start";
const FILESYSTEM_PREFIX: &str = "/filesystem.Filesystem/";

/// Of a request or a message: input to a process may be large.
const RPC_BYTES_MAX: usize = 16 << 20;

/// How long a connection waits for its next request: clients that keep one use it sooner, or not at all.
const REQUEST_MAX: Duration = Duration::from_secs(30);

/// How much of an answer waits to be sent, and as much again in the kernel: what a slow reader has not taken is to be in the
/// process's own ring still, when its connection breaks.
const SENT_AHEAD_BYTES: usize = 64 << 10;

/// How many calls a connection may have under way: each process that a client follows is one.
const STREAMS_MAX: u32 = 4096;

/// The same for who is in the guest.
const GUEST_STREAMS_MAX: u32 = 64;

/// How much a client may send before the agent has read it.
const WINDOW_BYTES: u32 = 1 << 20;
