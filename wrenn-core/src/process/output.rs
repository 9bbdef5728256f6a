//! The output of a process as two readers, one for each stream; they are called halves.
//!
//! ```text
//!  take ─▶ Idle ── the first read, or wait ──▶ Running ── the end ──▶ Ended
//!                                               │   ▲
//!                          the sandbox is over, │   │ reattach
//!                          or out of reach      ▼   │
//!                                              Broken
//! ```
//!
//! A task carries the pieces of output to the halves for as long as a half or the child is held. A half that is full
//! makes the task wait, and so makes the process wait.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, watch};

use crate::agent::process::ProcessStream;
use crate::error::{Error, Result};
use crate::exec::event::{Event, ExitStatus, RUN, next};
use crate::process::link::Link;
use crate::sandbox::handle::Sandbox;
use crate::state::SandboxState;

/// The standard output of a [`Child`](crate::Child), or all that it writes to its terminal. It keeps the sandbox alive.
///
/// The output ends when the process has ended. A process whose output is not read waits, as at a pipe, and the other
/// half then gets nothing either. The output for a half that was dropped is discarded.
///
/// # Errors
/// Reads fail with [`io::ErrorKind::ConnectionAborted`] once the sandbox was paused or has ended; they go on after
/// [`Child::reattach`](crate::Child::reattach). Reads fail with [`io::ErrorKind::InvalidData`] once for each gap in the
/// output. Every other error has the [`Error`] of [`Child::next_event`](crate::Child::next_event) inside.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncBufReadExt, BufReader};
///
/// let mut child = sandbox.command("ping").args(["-c", "3", "127.0.0.1"]).spawn().await?;
/// let mut lines = BufReader::new(child.take_stdout().expect("it was not taken before")).lines();
/// while let Some(line) = lines.next_line().await? {
///     println!("{line}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ChildStdout(Half);

/// The standard error of a [`Child`](crate::Child). It behaves as [`ChildStdout`].
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::AsyncReadExt;
///
/// let mut child = sandbox.command("ls").arg("/nowhere").spawn().await?;
/// let mut errors = String::new();
/// child.take_stderr().expect("it was not taken before").read_to_string(&mut errors).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ChildStderr(Half);

impl ChildStdout {
    pub(super) fn new(half: Half) -> Self {
        Self(half)
    }
}

impl ChildStderr {
    pub(super) fn new(half: Half) -> Self {
        Self(half)
    }
}

impl AsyncRead for ChildStdout {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(context, buf)
    }
}

impl AsyncRead for ChildStderr {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(context, buf)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    Stdout,
    Stderr,
}

/// The child's end of its halves.
#[derive(Debug)]
pub(super) struct Halves {
    carrier: Arc<Mutex<Carrier>>,
    state: watch::Receiver<State>,
}

/// What the task takes with it, and brings back when it breaks off.
#[derive(Debug)]
struct Carrier {
    link: Arc<Link>,
    /// `None` while the task has it.
    cargo: Option<Cargo>,
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug)]
struct Cargo {
    stream: ProcessStream,
    /// What was read before.
    ahead: VecDeque<Event>,
    stdout: Option<Pieces>,
    stderr: Option<Pieces>,
}

/// To a half.
type Pieces = mpsc::Sender<io::Result<Bytes>>;

#[derive(Debug, Clone)]
enum State {
    Idle,
    Running { offset: u64 },
    Broken { error: Arc<Error>, offset: u64 },
    Ended { status: ExitStatus, offset: u64 },
}

impl Halves {
    pub(super) fn new(link: Arc<Link>, stream: ProcessStream, ahead: VecDeque<Event>) -> Self {
        let (state, receiver) = watch::channel(State::Idle);
        let cargo = Some(Cargo { stream, ahead, stdout: None, stderr: None });
        let carrier = Carrier { link, cargo, state: Arc::new(state) };
        Self { carrier: Arc::new(Mutex::new(carrier)), state: receiver }
    }

    /// A half that was not taken before; `None` once reading has begun.
    pub(super) fn take(&self, which: Which) -> Option<Half> {
        let mut carrier = lock(&self.carrier);
        if !matches!(*self.state.borrow(), State::Idle) {
            return None;
        }
        let cargo = carrier.cargo.as_mut()?;
        let sender = match which {
            Which::Stdout => &mut cargo.stdout,
            Which::Stderr => &mut cargo.stderr,
        };
        if sender.is_some() {
            return None;
        }
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        *sender = Some(pieces);
        let (carrier, state) = (Arc::clone(&self.carrier), self.state.clone());
        Some(Half { carrier, state, received, piece: Bytes::new(), broken: None })
    }

    pub(super) fn offset(&self) -> u64 {
        match &*self.state.borrow() {
            State::Running { offset } | State::Broken { offset, .. } | State::Ended { offset, .. } => *offset,
            State::Idle => lock(&self.carrier).cargo.as_ref().map_or(0, |cargo| cargo.stream.offset()),
        }
    }

    /// Waits for the end. Output of a stream whose half was not taken is discarded.
    pub(super) async fn wait(&self) -> Result<ExitStatus> {
        start(&self.carrier);
        let mut state = self.state.clone();
        let over = |state: &State| matches!(state, State::Ended { .. } | State::Broken { .. });
        let end = state.wait_for(over).await.map(|state| state.clone());
        match end {
            Ok(State::Ended { status, .. }) => Ok(status),
            Ok(State::Broken { error, .. }) => Err(self.again(error).await),
            Ok(State::Idle | State::Running { .. }) | Err(_) => Err(Error::invalid("this command's halves are gone")),
        }
    }

    /// The stored error, for another caller: the reason of the sandbox's end where the sandbox is over.
    async fn again(&self, error: Arc<Error>) -> Error {
        let sandbox = lock(&self.carrier).link.sandbox();
        match sandbox.while_running(RUN, async { Ok(()) }).await {
            Err(over) => over,
            Ok(()) => Error::failed("read a command's output")(Box::new(error)),
        }
    }

    /// Goes on in another sandbox. A task that runs still is waited for first: it ends with the sandbox that it reads
    /// from.
    pub(super) async fn reattach(&self, sandbox: &Sandbox) -> Result<()> {
        let former = lock(&self.carrier).link.sandbox();
        if matches!(former.state(), SandboxState::Paused | SandboxState::Ended) {
            let mut state = self.state.clone();
            let stands = async { state.wait_for(|state| !matches!(state, State::Running { .. })).await.is_ok() };
            sandbox.while_running(RUN, async { Ok(stands.await) }).await?;
        }
        let Some(mut cargo) = lock(&self.carrier).cargo.take() else { return Ok(()) };
        let reattach = async { cargo.stream.reattach(sandbox.agent()).await.map_err(Error::command) };
        let reattached = sandbox.while_running(RUN, reattach).await;
        let mut carrier = lock(&self.carrier);
        carrier.cargo = Some(cargo);
        reattached?;
        let broken = matches!(*self.state.borrow(), State::Broken { .. });
        if broken {
            carry(&mut carrier, sandbox.clone(), &self.carrier);
        }
        Ok(())
    }
}

fn lock(carrier: &Mutex<Carrier>) -> MutexGuard<'_, Carrier> {
    carrier.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to read, unless somebody has.
fn start(shared: &Arc<Mutex<Carrier>>) {
    let mut carrier = lock(shared);
    let idle = matches!(*carrier.state.borrow(), State::Idle);
    if idle {
        let sandbox = carrier.link.sandbox();
        carry(&mut carrier, sandbox, shared);
    }
}

/// Starts the task.
fn carry(carrier: &mut Carrier, sandbox: Sandbox, shared: &Arc<Mutex<Carrier>>) {
    let Some(mut cargo) = carrier.cargo.take() else { return };
    let (state, shared) = (Arc::clone(&carrier.state), Arc::clone(shared));
    state.send_replace(State::Running { offset: cargo.stream.offset() });
    tokio::spawn(async move {
        let carried = tokio::select! {
            carried = cargo.carry(&sandbox, &state) => carried,
            // The child and both halves were dropped.
            () = state.closed() => return,
        };
        let offset = cargo.stream.offset();
        match carried {
            Ok(status) => {
                drop(cargo);
                state.send_replace(State::Ended { status, offset });
            }
            Err(error) => {
                lock(&shared).cargo = Some(cargo);
                state.send_replace(State::Broken { error: Arc::new(error), offset });
            }
        }
    });
}

impl Cargo {
    async fn carry(&mut self, sandbox: &Sandbox, state: &watch::Sender<State>) -> Result<ExitStatus> {
        loop {
            let event = match self.ahead.front() {
                Some(event) => event.clone(),
                None => {
                    let event = sandbox.while_running(RUN, next(&mut self.stream, sandbox.agent()).boxed()).await?;
                    state.send_replace(State::Running { offset: self.stream.offset() });
                    self.ahead.push_back(event.clone());
                    event
                }
            };
            match event {
                Event::Exit(status) => return Ok(status),
                event => {
                    // A half that is full may stay so for longer than the sandbox runs.
                    let Self { stdout, stderr, .. } = self;
                    let delivered = async {
                        deliver(event, stdout, stderr).await;
                        Ok(())
                    };
                    sandbox.while_running(RUN, delivered).await?;
                }
            }
            self.ahead.pop_front();
        }
    }
}

/// Hands an event to the half of its stream.
async fn deliver(event: Event, stdout: &mut Option<Pieces>, stderr: &mut Option<Pieces>) {
    match event {
        Event::Stdout(bytes) | Event::Pty(bytes) => hand_over(stdout, Ok(bytes)).await,
        Event::Stderr(bytes) => hand_over(stderr, Ok(bytes)).await,
        Event::Lost { bytes } => {
            hand_over(stdout, Err(gap(bytes))).await;
            hand_over(stderr, Err(gap(bytes))).await;
        }
        Event::Exit(_) => {}
    }
}

/// Hands a piece to a half, if there is one, and waits until the half has room.
async fn hand_over(half: &mut Option<Pieces>, piece: io::Result<Bytes>) {
    if let Some(pieces) = half
        && pieces.send(piece).await.is_err()
    {
        *half = None;
    }
}

fn gap(bytes: u64) -> io::Error {
    let text = format!("{bytes} bytes of the command's output are lost: the guest no longer held them");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A half's own end.
pub(super) struct Half {
    carrier: Arc<Mutex<Carrier>>,
    state: watch::Receiver<State>,
    received: mpsc::Receiver<io::Result<Bytes>>,
    /// What is left of the last piece.
    piece: Bytes,
    /// Resolves when the task has broken off.
    broken: Option<BoxFuture<'static, io::Error>>,
}

impl std::fmt::Debug for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Half").field("piece", &self.piece.len()).finish_non_exhaustive()
    }
}

impl Half {
    fn poll_read(&mut self, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        start(&self.carrier);
        while self.piece.is_empty() {
            match self.received.poll_recv(context) {
                Poll::Ready(Some(piece)) => self.piece = piece?,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.poll_broken(context).map(Err),
            }
        }
        let bytes = self.piece.len().min(buf.remaining());
        buf.put_slice(&self.piece[..bytes]);
        self.piece.advance(bytes);
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let state = &self.state;
        let broken = self.broken.get_or_insert_with(|| Box::pin(broken(state.clone())));
        let error = std::task::ready!(broken.as_mut().poll(context));
        self.broken = None;
        Poll::Ready(error)
    }
}

async fn broken(mut state: watch::Receiver<State>) -> io::Error {
    let broken = state.wait_for(|state| matches!(state, State::Broken { .. })).await.map(|state| state.clone());
    let Ok(State::Broken { error, .. }) = broken else {
        return io::Error::other("this command's halves are gone");
    };
    let kind = match &*error {
        Error::InvalidState { .. } | Error::VmEnded { .. } => io::ErrorKind::ConnectionAborted,
        Error::Agent { source, .. } => source.io_kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// How many pieces a half holds that nobody has read. The agent makes a piece of what there is, up to 64 KiB.
const PIECES_MAX: usize = 4;
