//! A process and a client, each of which has what the other says.
//!
//! ```text
//!            the sandbox is paused            it is over
//!  Attached ───────────────────────▶ Away ─────────────────▶ Over ─▶ close
//!    │  ▲                             │                       ▲
//!    │  └── again, Child::reattach ───┘     the process ended │
//!    └────────────────────────────────────────────────────────┘
//!
//!  the client is gone ─▶ leave: kill, after the pause where there is one
//! ```
//!
//! What a client does not take makes the process wait, and what the process does not take makes the client wait: of each
//! there is one piece of output, or a MiB of input, and no more.

use std::collections::VecDeque;

use axum::extract::ws::Message;
use serde::de::IgnoredAny;
use wrenn_core::{Child, Command, Error, Event, PtySize, Result, Sandbox, Signal};

use crate::api::v1::answer::Refused;
use crate::api::v1::commands::exit_code;
use crate::api::v1::streams::input::{Fed, Input};
use crate::api::v1::streams::message::{Attach, FromClient, FromServer};
use crate::api::v1::streams::place::{Place, is_paused};
use crate::api::v1::streams::socket::{Reading, Socket, Turn};
use crate::api::v1::streams::text::Text;
use crate::service::error::ServiceError;

/// Whether a process outlives its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientGone {
    Kill,
    Detach,
}

/// What a client wants to run, and where.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) sandbox: Sandbox,
    pub(super) process: Process,
    pub(super) client_gone: ClientGone,
}

/// A process that is to be had.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a stream has one, for a moment")]
pub(super) enum Process {
    New(Command),
    Old(Attach),
}

impl Process {
    async fn child(self, sandbox: &Sandbox) -> Result<Child> {
        match self {
            Self::New(command) => command.spawn().await,
            Self::Old(Attach { pid, offset }) => sandbox.attach_from(pid, offset).await,
        }
    }
}

/// A process that has begun, and its client.
#[derive(Debug)]
pub(super) struct Pump {
    socket: Socket,
    child: Child,
    /// Where the process runs, or ran before the pause.
    sandbox: Sandbox,
    place: Place,
    state: State,
    client_gone: ClientGone,
    input: Input,
    /// What the client asked for and was not done yet, since the sandbox is paused.
    controls: VecDeque<Control>,
    outbox: VecDeque<Message>,
    stdout: Text,
    stderr: Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Attached,
    Away,
    Over,
}

#[derive(Debug)]
enum Control {
    Signal(Signal),
    Resize(PtySize),
}

#[derive(Debug)]
enum Happened {
    Socket(Turn),
    Output(Result<Option<Event>>),
    Fed(Fed),
    Again(std::result::Result<Sandbox, Refused>),
}

impl Pump {
    /// Starts a command, or attaches to one. Where that fails, the client is told so.
    pub(super) async fn start(socket: Socket, place: Place, wanted: Wanted) -> Option<Self> {
        let Wanted { sandbox, process, client_gone } = wanted;
        let mut child = match process.child(&sandbox).await {
            Ok(child) => child,
            Err(error) => {
                socket.fail(of_core(error)).await;
                return None;
            }
        };
        let input = Input::new(child.take_stdin());
        let outbox = VecDeque::from([FromServer::Start { pid: child.pid() }.into()]);
        Some(Self {
            socket,
            child,
            sandbox,
            place,
            state: State::Attached,
            client_gone,
            input,
            controls: VecDeque::new(),
            outbox,
            stdout: Text::default(),
            stderr: Text::default(),
        })
    }

    /// Goes on until the process has ended and the client knows it, or the client is gone.
    pub(super) async fn run(mut self) {
        loop {
            if self.socket.is_free() {
                match self.outbox.pop_front() {
                    Some(message) => self.socket.send(message),
                    None if self.state == State::Over => return self.socket.close().await,
                    None => {}
                }
            }
            if self.state == State::Attached
                && let Some(control) = self.controls.pop_front()
            {
                self.control(control).await;
                continue;
            }
            match self.next().await {
                Happened::Socket(Turn::Sent) => {}
                Happened::Socket(Turn::Received(message)) => self.received(message),
                Happened::Socket(Turn::Unreadable(error)) => {
                    let error = FromServer::error("invalid_input", format!("the message cannot be read: {error}"));
                    let Self { socket, child, place, client_gone, .. } = self;
                    tokio::join!(socket.fail(error), leave(child, place, client_gone));
                    return;
                }
                Happened::Socket(Turn::Gone) => {
                    let Self { socket, child, place, client_gone, state, .. } = self;
                    // It takes none of the streams that there may be.
                    drop(socket);
                    if state != State::Over {
                        leave(child, place, client_gone).await;
                    }
                    return;
                }
                Happened::Output(output) => self.output(output),
                Happened::Fed(fed) => self.fed(fed).await,
                Happened::Again(again) => self.again(again).await,
            }
        }
    }

    async fn next(&mut self) -> Happened {
        let is_attached = self.state == State::Attached;
        let takes_output = is_attached && self.socket.is_free() && self.outbox.is_empty();
        let takes_more =
            self.outbox.len() < REFUSALS_MAX && self.controls.len() < CONTROLS_MAX && self.input.has_room();
        let reading = if takes_more { Reading::On } else { Reading::Off };
        tokio::select! {
            turn = self.socket.turn(reading) => Happened::Socket(turn),
            output = self.child.next_event(), if takes_output => Happened::Output(output),
            // Also while output is not taken: after a pause the guest keeps what was not read for some seconds only, if nobody
            // comes back for it.
            _ = self.sandbox.wait(), if is_attached => Happened::Output(self.child.next_event().await),
            fed = self.input.turn(), if is_attached => Happened::Fed(fed),
            again = self.place.again(), if self.state == State::Away => Happened::Again(again),
        }
    }

    fn received(&mut self, message: Message) {
        let text = match message {
            Message::Binary(bytes) => return self.input.push(bytes),
            Message::Text(text) => text,
            _ => return,
        };
        let done = match serde_json::from_str::<FromClient<IgnoredAny>>(&text) {
            Ok(message) => self.asked(message),
            Err(error) => Err(Refused::bad_request(format!("the message is none that there is: {error}"))),
        };
        if let Err(refused) = done {
            self.tell(refused);
        }
    }

    fn asked(&mut self, message: FromClient<IgnoredAny>) -> std::result::Result<(), Refused> {
        match message {
            FromClient::Start(_) | FromClient::Attach(_) => {
                return Err(Refused::bad_request("the process has begun: open another stream for another one"));
            }
            FromClient::Stdin(data) => self.input.push(data.into_bytes()?),
            FromClient::CloseStdin => self.input.close(),
            FromClient::Stop => self.controls.push_back(Control::Signal(Signal::KILL)),
            FromClient::Signal { signal } => {
                let signal = signal.parse().map_err(|error: Error| Refused::from(ServiceError::from(error)))?;
                self.controls.push_back(Control::Signal(signal));
            }
            FromClient::Resize(size) => self.controls.push_back(Control::Resize(size.try_into()?)),
        }
        Ok(())
    }

    async fn control(&mut self, control: Control) {
        let done = match &control {
            Control::Signal(signal) => self.child.signal(*signal).await,
            Control::Resize(size) => self.child.resize(*size).await,
        };
        match done {
            Ok(()) => {}
            Err(error) if is_paused(&error) => {
                self.state = State::Away;
                self.controls.push_front(control);
            }
            Err(error) => self.tell(of_core(error)),
        }
    }

    fn output(&mut self, output: Result<Option<Event>>) {
        match output {
            Ok(Some(Event::Stdout(bytes))) => {
                let data = self.stdout.push(&bytes);
                self.outbox.extend(data.map(|data| FromServer::Stdout(data).into()));
            }
            Ok(Some(Event::Stderr(bytes))) => {
                let data = self.stderr.push(&bytes);
                self.outbox.extend(data.map(|data| FromServer::Stderr(data).into()));
            }
            Ok(Some(Event::Pty(bytes))) => self.outbox.push_back(Message::Binary(bytes)),
            Ok(Some(Event::Lost { bytes })) => {
                let message = format!("{bytes} bytes of output are lost: the sandbox no longer held them");
                self.tell(FromServer::error("output_lost", message));
            }
            Ok(Some(Event::Exit(status))) => self.over(FromServer::Exit { exit_code: exit_code(&status) }),
            Ok(Some(_)) => {}
            Ok(None) => self.state = State::Over,
            Err(error) if is_paused(&error) => self.state = State::Away,
            Err(error) => self.over(of_core(error)),
        }
    }

    async fn fed(&mut self, fed: Fed) {
        match fed {
            Fed::Piece => {}
            Fed::Failed(error) => {
                let message = format!("the input was not written, and may be in part: {error}");
                self.tell(FromServer::error("input_unsure", message));
            }
            Fed::Close => match self.child.close_stdin().await {
                Err(error) if is_paused(&error) => {
                    self.state = State::Away;
                    self.input.close_again();
                }
                // A process that has ended or has closed it needs no end, and a terminal has none.
                Err(Error::Agent { .. }) | Ok(()) => {}
                Err(error) => self.tell(of_core(error)),
            },
        }
        self.tell_unsure();
    }

    async fn again(&mut self, again: std::result::Result<Sandbox, Refused>) {
        let sandbox = match again {
            Ok(sandbox) => sandbox,
            Err(refused) => return self.over(refused.into()),
        };
        match self.child.reattach(&sandbox).await {
            Ok(()) => {
                self.sandbox = sandbox;
                self.state = State::Attached;
                self.tell_unsure();
            }
            Err(error) if is_paused(&error) => {}
            Err(error) => self.over(of_core(error)),
        }
    }

    fn tell_unsure(&mut self) {
        if self.state == State::Attached
            && let Some(bytes) = self.input.take_unsure()
        {
            let message =
                format!("the sandbox was paused while {bytes} bytes of input were written: it may have a part");
            self.tell(FromServer::error("input_unsure", message));
        }
    }

    fn tell(&mut self, message: impl Into<FromServer>) {
        self.outbox.push_back(message.into().into());
    }

    /// Sends what is left, and why nothing more comes.
    fn over(&mut self, last: FromServer) {
        self.state = State::Over;
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        self.outbox.extend(stdout.map(|data| FromServer::Stdout(data).into()));
        self.outbox.extend(stderr.map(|data| FromServer::Stderr(data).into()));
        self.tell(last);
    }
}

/// What becomes of a process whose client is gone. Of a sandbox that is paused it is killed when that runs again.
async fn leave(mut child: Child, place: Place, client_gone: ClientGone) {
    if client_gone == ClientGone::Detach {
        return;
    }
    while let Err(error) = child.kill().await {
        if !is_paused(&error) {
            // It has ended, or its sandbox has.
            return tracing::debug!(id = place.id, pid = child.pid(), %error, "a process was not killed");
        }
        let Ok(sandbox) = place.again().await else { return };
        if let Err(error) = child.reattach(&sandbox).await
            && !is_paused(&error)
        {
            return tracing::debug!(id = place.id, pid = child.pid(), %error, "a process is not there any more");
        }
    }
}

fn of_core(error: Error) -> FromServer {
    Refused::from(ServiceError::from(error)).into()
}

/// Of what the client has sent, until it reads that.
const REFUSALS_MAX: usize = 16;
const CONTROLS_MAX: usize = 64;
