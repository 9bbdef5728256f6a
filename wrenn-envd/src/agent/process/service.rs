use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::StreamExt as _;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    command::Command,
    events::{Offsets, Shared, events},
    input::InputError,
    journal::From,
    launch::{Launch, LaunchError, Streams},
    life::{Begun, Start},
    moment::Over,
    running::Process,
    table::Table,
    terminal,
    time_limit::TimeLimit,
};
use crate::{
    agent::{
        cgroups::Groups,
        freezer::{Beginning, Freezer},
        keepalive::keepalive,
        settings::Settings,
        sys::SignalNumber,
    },
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
            config: Command::told(&process.config).into(),
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
        let (from, counts) = match request.offset {
            None => (From::Unread, request.offsets.unwrap_or(false)),
            Some(offset) => (From::Offset(offset), true),
        };
        let offsets = if counts { Offsets::Shown } else { Offsets::Hidden };
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
        let deadline = context.extensions().get::<TimeLimit>().map(|limit| limit.0);
        let beginning = self.begin(deadline).await?;
        let (begun, has_begun) = oneshot::channel();
        let task = Start {
            table: self.table.clone(),
            groups: self.groups.clone(),
            launch,
            deadline,
            waits_for_end,
            beginning,
        };
        tokio::spawn(task.run(begun));
        let begun = has_begun.await.map_err(|error| ConnectError::internal(error.to_string()))?;
        let Begun { process, reader, over } = begun.map_err(refuse_launch)?;
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
        let number = request.signal.to_i32();
        match SignalNumber::new(number) {
            None => return Err(ConnectError::invalid_argument(format!("no signal {number}; they are 1 to 64"))),
            Some(SignalNumber::KILL) => process.kill_all(),
            Some(signal) => process.signal(signal),
        }
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
    /// Waits for the end of a freeze, which is soon over, unless it is that of a pause: then nobody is left to be answered.
    async fn begin(&self, deadline: Option<Instant>) -> Result<Beginning, ConnectError> {
        let latest = Instant::now() + THAW_MAX;
        let end = deadline.map_or(latest, |deadline| deadline.min(latest));
        match timeout_at(end, self.freezer.begin()).await {
            Ok(Ok(beginning)) => Ok(beginning),
            Ok(Err(restored)) => Err(ConnectError::unavailable(restored.to_string())),
            Err(_) if end < latest => {
                Err(ConnectError::deadline_exceeded("the guest was frozen for all of the process's time"))
            }
            Err(_) => Err(ConnectError::unavailable("the guest is frozen")),
        }
    }

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
            process.kill_all();
        }
    }
}

/// Writes input at the process's pace, and no longer than that is there: others may hold what it read from, and never read.
async fn give(process: &Process, input: Option<wire::ProcessInput>) -> Result<(), ConnectError> {
    let Some(input) = input.and_then(|input| input.input) else {
        return Err(ConnectError::invalid_argument("no input is given"));
    };
    process.was_asked.store(true, Ordering::Relaxed);
    let given = async {
        match input {
            Input::Stdin(bytes) => process.input.send_stdin(&bytes).await,
            Input::Pty(bytes) => process.input.send_pty(&bytes).await,
        }
    };
    tokio::select! {
        biased;
        given = given => given.map_err(refuse_input),
        () = process.end() => Err(refuse_input(InputError::Ended)),
    }
}

fn refuse_input(error: InputError) -> ConnectError {
    ConnectError::failed_precondition(error.to_string()).with_source(error)
}

fn refuse_launch(error: LaunchError) -> ConnectError {
    let message = match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    match &error {
        LaunchError::NotInPath { .. } | LaunchError::NoProgram(_) | LaunchError::NoShell => {
            ConnectError::not_found(message)
        }
        LaunchError::Terminal(_) | LaunchError::Group(_) => ConnectError::resource_exhausted(message),
        LaunchError::HeldUp(_) => ConnectError::unavailable(message),
        LaunchError::NoDirectory(_) | LaunchError::Command(_) => ConnectError::invalid_argument(message),
        LaunchError::Spawn(_, source) | LaunchError::Directory(_, source) => match source.kind() {
            std::io::ErrorKind::PermissionDenied => ConnectError::permission_denied(message),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::OutOfMemory => {
                ConnectError::resource_exhausted(message)
            }
            _ => ConnectError::invalid_argument(message),
        },
    }
}

/// How long a start waits for a thaw: as long as the hooks may take, and as the copy of a guest that runs on.
const THAW_MAX: Duration = Duration::from_secs(30);
