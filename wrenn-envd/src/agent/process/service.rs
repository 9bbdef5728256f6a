use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt as _;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep_until};

use super::{
    InputError, Process, Table,
    events::events,
    launch::{Launch, LaunchError, Stdin},
};
use crate::{
    agent::{freezer::Freezer, settings::Settings},
    proto::process::{self as wire, process_input::Input, stream_input_request},
};

/// `process.Process`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) table: Arc<Table>,
    pub(crate) settings: Arc<Mutex<Settings>>,
    pub(crate) freezer: Arc<Freezer>,
}

impl wire::Process for Service {
    async fn list<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::ListRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListResponse> + Send + use<'a>> {
        let info = |process: Arc<Process>| wire::ProcessInfo {
            config: process.config.clone().into(),
            pid: process.pid,
            tag: process.tag.clone(),
            ..Default::default()
        };
        let processes = self.table.list().into_iter().map(info).collect();
        Response::ok(wire::ListResponse { processes, ..Default::default() })
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::ConnectResponse> + Send + use<>>> {
        let process = self.find(request.to_owned_message().process.into_option())?;
        let (backlog, receiver) = process.fanout.attach().ok_or_else(ended)?;
        let events = events(process.pid, backlog, receiver, keepalive(&context));
        Response::stream_ok(
            events.map(|event| event.map(|event| wire::ConnectResponse { event: event.into(), ..Default::default() })),
        )
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::StartResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        if request.pty.is_set() {
            return Err(ConnectError::unimplemented("a terminal for a process (pty)"));
        }
        let config =
            request.process.into_option().ok_or_else(|| ConnectError::invalid_argument("no process is named"))?;
        let stdin = if request.stdin.unwrap_or(true) { Stdin::Pipe } else { Stdin::Null };
        let launch = {
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            let user = settings
                .user_of(context.headers())
                .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
            Launch::prepare(config, request.tag, stdin, user, &settings, &self.freezer).map_err(refuse_launch)?
        };
        let (process, pipes, exit) = launch.spawn(&self.table).map_err(refuse_launch)?;
        let (backlog, receiver) = process.fanout.attach().ok_or_else(ended)?;
        let events = events(process.pid, backlog, receiver, keepalive(&context));
        tokio::spawn(live(self.table.clone(), process, pipes, exit, context.deadline().map(Instant::from_std)));
        Response::stream_ok(
            events.map(|event| event.map(|event| wire::StartResponse { event: event.into(), ..Default::default() })),
        )
    }

    async fn update<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<impl Encodable<wire::UpdateResponse> + Send + use<'a>> {
        self.find(request.to_owned_message().process.into_option())?;
        Err::<Response<wire::UpdateResponse>, _>(ConnectError::unimplemented("resizing a terminal (pty)"))
    }

    async fn stream_input<'a>(
        &'a self,
        _context: RequestContext,
        mut requests: InboundStream<wire::StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<wire::StreamInputResponse> + Send + use<'a>> {
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(stream_input_request::Event::Start(start)) => {
                    process = Some(self.find(start.process.into_option())?)
                }
                Some(stream_input_request::Event::Data(data)) => {
                    let process =
                        process.as_ref().ok_or_else(|| ConnectError::failed_precondition("input before its start"))?;
                    give(process, data.input.into_option()).await?;
                }
                Some(stream_input_request::Event::Keepalive(_)) | None => {}
            }
        }
        Response::ok(wire::StreamInputResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::SendInputRequest>,
    ) -> ServiceResult<impl Encodable<wire::SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.into_option())?;
        give(&process, request.input.into_option()).await?;
        Response::ok(wire::SendInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<wire::SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.into_option())?;
        // The two that are named in the protocol, and any other by its number.
        let signal = Signal::try_from(request.signal.to_i32())
            .map_err(|_| ConnectError::invalid_argument(format!("no signal {}", request.signal.to_i32())))?;
        process.signal_group(signal);
        Response::ok(wire::SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<wire::CloseStdinResponse> + Send + use<'a>> {
        self.find(request.to_owned_message().process.into_option())?.close_stdin().await;
        Response::ok(wire::CloseStdinResponse::default())
    }
}

impl Service {
    fn find(&self, selector: Option<wire::ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        let selector = selector.ok_or_else(|| ConnectError::invalid_argument("no process is named"))?;
        self.table.find(&selector).ok_or_else(|| {
            ConnectError::not_found(match selector.selector {
                Some(wire::process_selector::Selector::Pid(pid)) => format!("no process with pid {pid}"),
                Some(wire::process_selector::Selector::Tag(tag)) => format!("no process with tag {tag:?}"),
                None => "no process is named".to_owned(),
            })
        })
    }
}

/// Runs a process to its end, or to its deadline. Nobody's connection owns this.
async fn live(
    table: Arc<Table>,
    process: Arc<Process>,
    pipes: super::Pipes,
    exit: tokio::sync::oneshot::Receiver<std::process::ExitStatus>,
    deadline: Option<Instant>,
) {
    let finish = {
        let running = process.run(pipes, exit);
        tokio::pin!(running);
        tokio::select! {
            finish = &mut running => finish,
            () = until(deadline) => {
                process.time_out();
                running.await
            }
        }
    };
    // First, so that whoever hears of the end finds it gone.
    table.remove(&process);
    process.fanout.finish(finish).await;
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn give(process: &Process, input: Option<wire::ProcessInput>) -> Result<(), ConnectError> {
    match input.and_then(|input| input.input) {
        Some(Input::Stdin(bytes)) => process.send_stdin(&bytes).await.map_err(|error| match error {
            InputError::Closed => ConnectError::failed_precondition(error.to_string()),
            InputError::Broken(_) => ConnectError::failed_precondition(error.to_string()).with_source(error),
        }),
        Some(Input::Pty(_)) => Err(ConnectError::unimplemented("input to a terminal (pty)")),
        None => Err(ConnectError::invalid_argument("no input is given")),
    }
}

fn refuse_launch(error: LaunchError) -> ConnectError {
    let message = match &error {
        LaunchError::Spawn(_, source) => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    match &error {
        LaunchError::NotInPath { .. } | LaunchError::NoProgram(_) => ConnectError::not_found(message),
        LaunchError::Frozen => ConnectError::failed_precondition(message),
        LaunchError::NoDirectory(_) | LaunchError::Malformed(_) => ConnectError::invalid_argument(message),
        LaunchError::Spawn(_, source) => match source.kind() {
            std::io::ErrorKind::PermissionDenied => ConnectError::permission_denied(message),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => {
                ConnectError::resource_exhausted(message)
            }
            _ => ConnectError::invalid_argument(message),
        },
    }
}

fn ended() -> ConnectError {
    ConnectError::not_found("the process has ended")
}

/// How often a silent stream shows life: what the client asks for in seconds, or E2B's 90 s.
fn keepalive(context: &RequestContext) -> Duration {
    let asked = context.header("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Duration::from_secs(asked.filter(|seconds| *seconds > 0).unwrap_or(90))
}
