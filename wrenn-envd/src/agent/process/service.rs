use std::sync::{Arc, Mutex, PoisonError};

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt as _;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep_until};

use super::{
    events::{Offsets, Shared, events},
    input::InputError,
    journal::From,
    launch::{Launch, LaunchError, Launched, Streams},
    moment::{Moment, Over},
    running::Process,
    table::Table,
    terminal,
};
use crate::{
    agent::{cgroups::Groups, freezer::Freezer, keepalive::keepalive, settings::Settings},
    proto::process::{self as wire, process_input::Input, stream_input_request},
};

/// `process.Process`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) table: Arc<Table>,
    pub(crate) settings: Arc<Mutex<Settings>>,
    pub(crate) freezer: Arc<Freezer>,
    pub(crate) groups: Arc<Groups>,
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
        let request = request.to_owned_message();
        let selector = request.process.into_option();
        let (pid, journal) = match (self.find(selector.clone()), request.offset, &selector) {
            (Err(refusal), Some(_), Some(selector)) => self.table.find_ended(selector).ok_or(refusal)?,
            (process, ..) => process.map(|process| (process.pid, process.journal.clone()))?,
        };
        let (from, offsets) = match request.offset {
            None => (From::Unread, Offsets::Hidden),
            Some(offset) => (From::Offset(offset), Offsets::Shown),
        };
        let reader = journal.attach(from).map_err(|error| ConnectError::out_of_range(error.to_string()))?;
        let events = events(pid, reader, offsets, keepalive(&context));
        Response::stream_ok(events.map(|event| {
            event.map(|event| Shared(wire::ConnectResponse { event: event.into(), ..Default::default() }))
        }))
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::StartResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let streams = streams(&request)?;
        let waits_for_end = request.until_end.unwrap_or(false);
        let offsets = if request.offsets.unwrap_or(false) { Offsets::Shown } else { Offsets::Hidden };
        let config =
            request.process.into_option().ok_or_else(|| ConnectError::invalid_argument("no process is named"))?;
        let launch = {
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            let user = settings
                .user_of(context.headers())
                .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
            Launch::prepare(config, request.tag, streams, user, &settings).map_err(refuse_launch)?
        };
        let launched = launch.spawn(&self.table, &self.groups, &self.freezer).map_err(refuse_launch)?;
        let process = launched.process.clone();
        let reader = process.journal.attach(From::Offset(0));
        let reader = reader.map_err(|error| ConnectError::internal(error.to_string()))?;
        let deadline = context.deadline().map(Instant::from_std);
        let (moment, over) = waits_for_end.then(|| Moment::of(launched.took)).unzip();
        tokio::spawn(live(self.table.clone(), self.groups.clone(), launched, deadline, moment));
        if let Some(over) = over {
            await_end(&process, over, &self.freezer).await;
        }
        let events = events(process.pid, reader, offsets, keepalive(&context));
        Response::stream_ok(
            events.map(|event| {
                event.map(|event| Shared(wire::StartResponse { event: event.into(), ..Default::default() }))
            }),
        )
    }

    async fn update<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::UpdateRequest>,
    ) -> ServiceResult<impl Encodable<wire::UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.into_option())?;
        if let Some(pty) = request.pty.into_option() {
            let size = terminal::size(&pty).map_err(ConnectError::invalid_argument)?;
            process.input.resize(size).map_err(refuse_input)?;
        }
        Response::ok(wire::UpdateResponse::default())
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
        process.signal(signal);
        Response::ok(wire::SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<wire::CloseStdinResponse> + Send + use<'a>> {
        let process = self.find(request.to_owned_message().process.into_option())?;
        process.input.close().await.map_err(refuse_input)?;
        Response::ok(wire::CloseStdinResponse::default())
    }
}

impl Service {
    fn find(&self, selector: Option<wire::ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        let selector = selector.ok_or_else(|| ConnectError::invalid_argument("no process is named"))?;
        self.table.find(&selector).ok_or_else(|| unknown(selector))
    }
}

fn unknown(selector: wire::ProcessSelector) -> ConnectError {
    use wire::process_selector::Selector;
    match selector.selector {
        Some(Selector::Pid(pid)) => ConnectError::not_found(format!("no process with pid {pid}")),
        Some(Selector::Tag(tag)) => ConnectError::not_found(format!("no process with tag {tag:?}")),
        None => ConnectError::invalid_argument("no process is named"),
    }
}

/// What the request wants of the process's standard streams.
fn streams(request: &wire::StartRequest) -> Result<Streams, ConnectError> {
    match request.pty.as_option() {
        Some(pty) => terminal::size(pty).map(Streams::Terminal).map_err(ConnectError::invalid_argument),
        None if request.stdin.unwrap_or(true) => Ok(Streams::Pipes),
        None => Ok(Streams::OutputPipes),
    }
}

/// Runs a process to its end, or to its deadline. Nobody's connection owns this.
async fn live(
    table: Arc<Table>,
    groups: Arc<Groups>,
    launched: Launched,
    deadline: Option<Instant>,
    mut moment: Option<Moment>,
) {
    let Launched { process, outputs, exit, .. } = launched;
    let finish = {
        let running = process.run(outputs, exit, &mut moment);
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
    table.retire(&process);
    process.journal.finish(finish);
    drop(moment);
    if let Some(leaf) = &process.leaf {
        // Nobody waits for that: the end is told first.
        tokio::task::yield_now().await;
        groups.retire(leaf);
    }
}

/// Waits a moment for the end. Whoever gives up meanwhile knows no number to kill the process by.
async fn await_end(process: &Arc<Process>, over: Over, freezer: &Freezer) {
    let mut abandoned = KillOnDrop(Some(process.clone()));
    tokio::select! {
        _ = over => {}
        // Who comes back after a pause has to know the process.
        () = freezer.frozen() => {}
    }
    abandoned.0 = None;
}

struct KillOnDrop(Option<Arc<Process>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.signal(Signal::SIGKILL);
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn give(process: &Process, input: Option<wire::ProcessInput>) -> Result<(), ConnectError> {
    let given = match input.and_then(|input| input.input) {
        Some(Input::Stdin(bytes)) => process.input.send_stdin(&bytes).await,
        Some(Input::Pty(bytes)) => process.input.send_pty(&bytes).await,
        None => return Err(ConnectError::invalid_argument("no input is given")),
    };
    given.map_err(refuse_input)
}

fn refuse_input(error: InputError) -> ConnectError {
    ConnectError::failed_precondition(error.to_string()).with_source(error)
}

fn refuse_launch(error: LaunchError) -> ConnectError {
    let message = match &error {
        LaunchError::Spawn(_, source) | LaunchError::Terminal(source) | LaunchError::Group(source) => {
            format!("{error}: {source}")
        }
        _ => error.to_string(),
    };
    match &error {
        LaunchError::NotInPath { .. } | LaunchError::NoProgram(_) => ConnectError::not_found(message),
        LaunchError::Terminal(_) | LaunchError::Group(_) => ConnectError::resource_exhausted(message),
        LaunchError::Frozen => ConnectError::failed_precondition(message),
        LaunchError::NoDirectory(_) | LaunchError::NoCommand | LaunchError::Nul(_) | LaunchError::Variable(_) => {
            ConnectError::invalid_argument(message)
        }
        LaunchError::Spawn(_, source) => match source.kind() {
            std::io::ErrorKind::PermissionDenied => ConnectError::permission_denied(message),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => {
                ConnectError::resource_exhausted(message)
            }
            _ => ConnectError::invalid_argument(message),
        },
    }
}
