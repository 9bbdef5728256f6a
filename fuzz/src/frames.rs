//! The calls of the agent's two services, as far as its handlers: protocol, envelopes, codecs and messages.
//!
//! The handlers themselves are left out, since they do what they are told: one would run what the fuzzer makes up.

use bytes::Bytes;
use connectrpc::{
    ConnectError, ConnectRpcService, Dispatcher, Encodable, InboundStream, Limits, RequestContext, Response,
    ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use tower::ServiceExt as _;
use wrenn_envd::proto::{
    filesystem::{self, Filesystem, FilesystemServer},
    process::{self, Process, ProcessServer},
};

/// Any bytes are answered. The first two say which method is called in which protocol, and the others are the body.
pub(crate) fn frames(bytes: &[u8]) {
    let [method, kind, body @ ..] = bytes else { return };
    let path = METHODS[usize::from(*method) % METHODS.len()];
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let request = Request::post(path).header("content-type", kind).header("connect-protocol-version", "1");
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).expect("a request");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    if path.starts_with("/process.") {
        runtime.block_on(answer(ProcessServer::new(Idle), request));
    } else {
        runtime.block_on(answer(FilesystemServer::new(Idle), request));
    }
}

async fn answer<D: Dispatcher>(dispatcher: D, request: Request<Full<Bytes>>) {
    let limits = Limits::default().with_max_request_body_size(BYTES_MAX).with_max_message_size(BYTES_MAX);
    let service = ConnectRpcService::new(dispatcher).with_limits(limits);
    let response = match service.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let body = response.into_body().collect().await;
    assert!(body.is_ok(), "an answer breaks off");
}

/// As the agent has it.
const BYTES_MAX: usize = 16 << 20;

const KINDS: [&str; 7] = [
    "application/json",
    "application/proto",
    "application/connect+json",
    "application/connect+proto",
    "application/grpc+proto",
    "application/grpc",
    "application/grpc-web+proto",
];

const METHODS: [&str; 17] = [
    "/process.Process/List",
    "/process.Process/Connect",
    "/process.Process/Start",
    "/process.Process/Update",
    "/process.Process/StreamInput",
    "/process.Process/SendInput",
    "/process.Process/SendSignal",
    "/process.Process/CloseStdin",
    "/filesystem.Filesystem/Stat",
    "/filesystem.Filesystem/MakeDir",
    "/filesystem.Filesystem/Move",
    "/filesystem.Filesystem/ListDir",
    "/filesystem.Filesystem/Remove",
    "/filesystem.Filesystem/WatchDir",
    "/filesystem.Filesystem/CreateWatcher",
    "/filesystem.Filesystem/GetWatcherEvents",
    "/filesystem.Filesystem/RemoveWatcher",
];

/// Reads every request whole, and does nothing.
struct Idle;

macro_rules! unary {
    ($name:ident, $package:ident :: $request:ident -> $response:ident) => {
        async fn $name<'a>(
            &'a self,
            _context: RequestContext,
            request: ServiceRequest<'_, $package::$request>,
        ) -> ServiceResult<impl Encodable<$package::$response> + Send + use<'a>> {
            drop(request.to_owned_message());
            Response::ok($package::$response::default())
        }
    };
}

macro_rules! streaming {
    ($name:ident, $package:ident :: $request:ident -> $response:ident) => {
        async fn $name(
            &self,
            _context: RequestContext,
            request: ServiceRequest<'_, $package::$request>,
        ) -> ServiceResult<ServiceStream<impl Encodable<$package::$response> + Send + use<>>> {
            drop(request.to_owned_message());
            let one = Ok::<_, ConnectError>($package::$response::default());
            Response::stream_ok(futures::stream::iter([one]))
        }
    };
}

impl Process for Idle {
    unary!(list, process::ListRequest -> ListResponse);
    streaming!(connect, process::ConnectRequest -> ConnectResponse);
    streaming!(start, process::StartRequest -> StartResponse);
    unary!(update, process::UpdateRequest -> UpdateResponse);

    async fn stream_input<'a>(
        &'a self,
        _context: RequestContext,
        mut requests: InboundStream<process::StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<process::StreamInputResponse> + Send + use<'a>> {
        while let Some(request) = requests.next().await {
            drop(request?.to_owned_message());
        }
        Response::ok(process::StreamInputResponse::default())
    }

    unary!(send_input, process::SendInputRequest -> SendInputResponse);
    unary!(send_signal, process::SendSignalRequest -> SendSignalResponse);
    unary!(close_stdin, process::CloseStdinRequest -> CloseStdinResponse);
}

impl Filesystem for Idle {
    unary!(stat, filesystem::StatRequest -> StatResponse);
    unary!(make_dir, filesystem::MakeDirRequest -> MakeDirResponse);
    unary!(r#move, filesystem::MoveRequest -> MoveResponse);
    unary!(list_dir, filesystem::ListDirRequest -> ListDirResponse);
    unary!(remove, filesystem::RemoveRequest -> RemoveResponse);
    streaming!(watch_dir, filesystem::WatchDirRequest -> WatchDirResponse);
    unary!(create_watcher, filesystem::CreateWatcherRequest -> CreateWatcherResponse);
    unary!(get_watcher_events, filesystem::GetWatcherEventsRequest -> GetWatcherEventsResponse);
    unary!(remove_watcher, filesystem::RemoveWatcherRequest -> RemoveWatcherResponse);
}
