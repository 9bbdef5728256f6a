//! Calls about processes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::CallOptions;
use wrenn_envd::proto::process::{
    self as wire, CloseStdinRequest, ConnectRequest, ListRequest, PTY, ProcessConfig, ProcessInput, ProcessSelector,
    SendInputRequest, SendSignalRequest, StartRequest, UpdateRequest, process_config::Variable, process_input::Input,
    process_selector::Selector, pty::Size,
};

use crate::agent::client::{AgentClient, Result, with_header};
use crate::agent::error::AgentError;
use crate::agent::process::{Deadline, InputKind, Messages, ProcessEntry, ProcessSpec, ProcessStream};
use crate::patience::patient;

impl AgentClient {
    /// Starts a process. The first event is [`ProcessEvent::Start`](super::ProcessEvent::Start).
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] for a command that the guest does not have, [`AgentError::InvalidArgument`] for a
    /// working directory or a user that it does not have, [`AgentError::Unresponsive`] where the agent does not say
    /// within a minute that the process has started, or does not tell of its end within 2 s of its time-out.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling may leave the process running in the guest.
    pub(crate) async fn start(&self, spec: &ProcessSpec) -> Result<ProcessStream> {
        let deadline = Deadline::after(spec.timeout);
        let limit = deadline.map_or(Duration::MAX, |deadline| deadline.left()).min(patient(START_MAX));
        let options = self.start_options(spec)?;
        let start = async { Ok(self.processes.start_with_options(request(spec), options).await?) };
        let messages = self.bounded(Some(limit), start).await?;
        Ok(ProcessStream::new(Messages::Started(messages), 0, deadline))
    }

    fn start_options(&self, spec: &ProcessSpec) -> Result<CallOptions> {
        let options = self.options_of(spec.user.as_deref())?;
        match spec.timeout {
            // The client's own time-out is not used: it would end the stream here before the guest tells that the
            // process is dead.
            Some(timeout) => {
                with_header(options, "connect-timeout-ms", &timeout.as_millis().min(MAX_TIMEOUT_MS).to_string())
            }
            None => Ok(options),
        }
    }

    /// Attaches to a process, whose output is read from an offset on. The first event is the process's start.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] where no such process runs or has ended in the last ten minutes, and
    /// [`AgentError::OutOfRange`] where the process has not written that much.
    pub(crate) async fn attach(&self, process: Selector, offset: u64) -> Result<ProcessStream> {
        Ok(ProcessStream::new(self.connect_process(process, offset).await?, offset, None))
    }

    pub(super) async fn connect_process(&self, process: Selector, offset: u64) -> Result<Messages> {
        let request = ConnectRequest { process: selector(process).into(), offset: Some(offset), ..Default::default() };
        let options = self.options()?;
        let connect = async { Ok(self.processes.connect_with_options(request, options).await?) };
        Ok(Messages::Attached(self.quick(connect).await?))
    }

    /// The processes that were started through the agent and run.
    pub(crate) async fn list(&self) -> Result<Vec<ProcessEntry>> {
        let options = self.options()?;
        let list = async { Ok(self.processes.list_with_options(ListRequest::default(), options).await?.into_owned()) };
        let answer = self.quick(list).await?;
        let entry = |info: wire::ProcessInfo| {
            let config = info.config.into_option().unwrap_or_default();
            ProcessEntry { pid: info.pid, tag: info.tag, cmd: config.cmd, args: config.args, cwd: config.cwd }
        };
        Ok(answer.processes.into_iter().map(entry).collect())
    }

    /// Writes all of `bytes` to a process, at the process's own pace.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] once the process has ended, [`AgentError::Refused`] where it has no standard input.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling may leave a part of `bytes` written.
    pub(crate) async fn send_input(&self, pid: u32, kind: InputKind, bytes: Bytes) -> Result<()> {
        // The agent takes a request of this size at once.
        for piece in bytes.chunks(INPUT_BYTES_MAX) {
            let sent = match kind {
                InputKind::Pipe => self.send_piece(pid, Input::Stdin(piece.to_vec())).await,
                InputKind::Terminal => self.send_piece(pid, Input::Pty(piece.to_vec())).await,
                InputKind::Unknown => self.send_to_either(pid, piece).await,
            };
            sent?;
        }
        Ok(())
    }

    /// Sends a piece to the process's pipe, and to its terminal where it has no pipe. A piece that is refused was not
    /// written in part.
    async fn send_to_either(&self, pid: u32, piece: &[u8]) -> Result<()> {
        match self.send_piece(pid, Input::Stdin(piece.to_vec())).await {
            Err(AgentError::Refused { code, message }) if code == "failed_precondition" => {
                let sent = self.send_piece(pid, Input::Pty(piece.to_vec())).await;
                // The process has no terminal either.
                let has_neither =
                    matches!(&sent, Err(AgentError::Refused { code, .. }) if *code == "failed_precondition");
                if has_neither { Err(AgentError::Refused { code, message }) } else { sent }
            }
            sent => sent,
        }
    }

    async fn send_piece(&self, pid: u32, input: Input) -> Result<()> {
        let input = ProcessInput { input: Some(input), ..Default::default() };
        let request = SendInputRequest { process: by_pid(pid).into(), input: input.into(), ..Default::default() };
        let options = self.options()?;
        // There is no limit, since the process may take any time to read its input.
        self.bounded(None, async { Ok(self.processes.send_input_with_options(request, options).await.map(drop)?) })
            .await
    }

    /// Closes a process's standard input, so that the process reads its end.
    pub(crate) async fn close_stdin(&self, pid: u32) -> Result<()> {
        let request = CloseStdinRequest { process: by_pid(pid).into(), ..Default::default() };
        let options = self.options()?;
        self.quick(async { Ok(self.processes.close_stdin_with_options(request, options).await.map(drop)?) }).await
    }

    /// Resizes a process's terminal.
    pub(crate) async fn resize(&self, pid: u32, size: (u16, u16)) -> Result<()> {
        let request = UpdateRequest { process: by_pid(pid).into(), pty: pty(size).into(), ..Default::default() };
        let options = self.options()?;
        self.quick(async { Ok(self.processes.update_with_options(request, options).await.map(drop)?) }).await
    }

    /// Signals a process and its group, by the signal's number. `SIGKILL` reaches everything that the process has
    /// started.
    pub(crate) async fn signal(&self, pid: u32, number: i32) -> Result<()> {
        let request = SendSignalRequest { process: by_pid(pid).into(), signal: number.into(), ..Default::default() };
        let options = self.options()?;
        self.quick(async { Ok(self.processes.send_signal_with_options(request, options).await.map(drop)?) }).await
    }
}

fn request(spec: &ProcessSpec) -> StartRequest {
    let process = config_of(spec);
    StartRequest {
        process: process.into(),
        pty: spec.pty.map(pty).into(),
        tag: spec.tag.clone(),
        stdin: Some(spec.stdin),
        offsets: Some(true),
        until_end: spec.until_end.then_some(true),
        ..Default::default()
    }
}

/// The process's words as text, which every agent takes, or as bytes where one of them is not UTF-8.
fn config_of(spec: &ProcessSpec) -> ProcessConfig {
    let config = text_config(spec).unwrap_or_else(|| {
        let bytes = |word: &OsString| word.as_bytes().to_vec();
        let variable = |(name, value)| Variable { name: bytes(name), value: bytes(value), ..Default::default() };
        ProcessConfig {
            cmd_bytes: Some(bytes(&spec.cmd)),
            args_bytes: spec.args.iter().map(bytes).collect(),
            env_bytes: spec.envs.iter().map(variable).collect(),
            cwd_bytes: spec.cwd.as_ref().map(bytes),
            ..Default::default()
        }
    });
    ProcessConfig { env_clear: spec.env_clear.then_some(true), ..config }
}

fn text_config(spec: &ProcessSpec) -> Option<ProcessConfig> {
    let text = |word: &OsString| word.to_str().map(str::to_owned);
    Some(ProcessConfig {
        cmd: text(&spec.cmd)?,
        args: spec.args.iter().map(text).collect::<Option<_>>()?,
        envs: spec.envs.iter().map(|(name, value)| Some((text(name)?, text(value)?))).collect::<Option<_>>()?,
        cwd: match &spec.cwd {
            Some(cwd) => Some(text(cwd)?),
            None => None,
        },
        ..Default::default()
    })
}

fn pty((cols, rows): (u16, u16)) -> PTY {
    PTY { size: Size { cols: cols.into(), rows: rows.into(), ..Default::default() }.into(), ..Default::default() }
}

fn by_pid(pid: u32) -> ProcessSelector {
    selector(Selector::Pid(pid))
}

fn selector(selector: Selector) -> ProcessSelector {
    ProcessSelector { selector: Some(selector), ..Default::default() }
}

/// The protocol allows ten digits.
const MAX_TIMEOUT_MS: u128 = 9_999_999_999;

/// How long the agent may take to tell that a process has started. The time that the process runs does not count.
const START_MAX: Duration = Duration::from_secs(60);

const INPUT_BYTES_MAX: usize = 1 << 20;
