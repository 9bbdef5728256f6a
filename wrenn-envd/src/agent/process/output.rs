use std::{
    fs::File,
    io::{self, PipeReader},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::buffer::spare_capacity;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

use super::{journal::Journal, pace::Pace, ring::Channel, terminal::Terminal};
use crate::agent::sys;

/// The agent's ends of a process's output: two pipes, or a terminal.
#[derive(Debug)]
pub(in crate::agent) struct Outputs {
    first: Output,
    second: Output,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Output {
    channel: Channel,
    /// `None` once it is at its end.
    source: Option<Source>,
    pace: Pace,
    /// What was there when the process ended, and has not been read yet; `None` while it runs.
    left_bytes: Option<usize>,
}

#[derive(Debug)]
enum Source {
    Pipe(AsyncFd<File>),
    /// A pipe that nobody watches until then: one that is watched wakes the agent up for every write.
    Resting(File, Instant),
    Terminal(Arc<Terminal>),
}

impl Outputs {
    /// Those of a process that is about to begin. Each is read once before it is watched.
    pub(super) fn pipes(stdout: PipeReader, stderr: PipeReader) -> io::Result<Self> {
        let output = |channel, pipe: PipeReader| {
            fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let source = Source::Resting(OwnedFd::from(pipe).into(), Instant::now());
            Ok::<_, io::Error>(Output::new(channel, Some(source)))
        };
        Ok(Self { first: output(Channel::Stdout, stdout)?, second: output(Channel::Stderr, stderr)? })
    }

    pub(super) fn terminal(terminal: Arc<Terminal>) -> Self {
        let first = Output::new(Channel::Pty, Some(Source::Terminal(terminal)));
        Self { first, second: Output::new(Channel::Pty, None) }
    }

    /// Waits for one that has something to read, or is at its end.
    ///
    /// # Cancel-Safety
    ///
    /// Cancelling loses nothing.
    pub(super) async fn readable(&mut self) -> &mut Output {
        let Self { first, second } = self;
        let is_first = tokio::select! {
            () = first.readable() => true,
            () = second.readable() => false,
        };
        if is_first { first } else { second }
    }

    /// The process has ended: what is there now is its own.
    pub(super) fn note_what_is_left(&mut self, journal: &Journal) {
        for output in [&mut self.first, &mut self.second] {
            output.source = output.source.take().map(Source::due);
            output.left_bytes = Some(0);
            // Mostly this is its end, and nothing has to be counted.
            output.carry(journal, false);
            output.left_bytes = Some(output.source.as_ref().map_or(0, Source::readable_bytes));
        }
    }

    /// One pipe, which must not block.
    pub(in crate::agent) fn pipe(pipe: OwnedFd) -> Self {
        let source = Source::Resting(pipe.into(), Instant::now());
        Self { first: Output::new(Channel::Stdout, Some(source)), second: Output::new(Channel::Stderr, None) }
    }

    /// How many pipes are not at their end.
    pub(super) fn open_pipes(&self) -> u32 {
        [&self.first, &self.second].into_iter().map(|output| u32::from(output.is_open_pipe())).sum()
    }

    /// Reads the pipes to their ends, and keeps nothing. A terminal hangs up.
    pub(super) async fn discard(mut self) {
        for output in [&mut self.first, &mut self.second] {
            output.left_bytes = None;
            output.source = output.source.take().filter(|source| !matches!(source, Source::Terminal(_)));
        }
        while self.open_pipes() > 0 {
            let is_flood = self.readable().await.take(|_| {}) == PIECE_BYTES_MAX;
            if is_flood {
                sleep(FLOOD_REST).await;
            }
        }
    }

    /// Whether all that a process has left is read, and others have closed their ends or are waited for no longer.
    pub(super) fn are_drained(&self, grace_is_over: bool) -> bool {
        [&self.first, &self.second]
            .into_iter()
            .all(|output| output.source.is_none() || (grace_is_over && output.left_bytes == Some(0)))
    }
}

impl Output {
    fn new(channel: Channel, source: Option<Source>) -> Self {
        Self { channel, source, pace: Pace::default(), left_bytes: None }
    }

    /// Moves what is there to the journal.
    /// What was asked for by input is waited for.
    pub(super) fn carry(&mut self, journal: &Journal, was_asked: bool) {
        let channel = self.channel;
        if was_asked {
            self.pace.ask();
        }
        self.take(|piece| journal.push(channel, piece));
    }

    fn is_open_pipe(&self) -> bool {
        self.source.as_ref().is_some_and(|source| !matches!(source, Source::Terminal(_)))
    }

    /// Hands what is there to `sink`; returns how many bytes that were.
    fn take(&mut self, sink: impl FnOnce(Vec<u8>)) -> usize {
        let Some(source) = self.source.take() else { return 0 };
        // Room that is not needed was never touched, and costs nothing.
        let mut piece = Vec::with_capacity(PIECE_BYTES_MAX);
        let read = source.try_read(&mut piece);
        if read.is_ok() {
            sink(piece);
        }
        let length = read.as_ref().map_or(0, |length| *length);
        self.source = match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Some(source),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Some(self.empty(source)),
            Ok(0) | Err(_) => None,
            Ok(length) => Some(self.paced(source, length)),
        };
        length
    }

    /// The source, after `length` bytes of it were read: watched or left alone.
    fn paced(&mut self, source: Source, length: usize) -> Source {
        if let Some(left_bytes) = &mut self.left_bytes {
            *left_bytes = left_bytes.saturating_sub(length);
            return source;
        }
        match self.pace.rest(Instant::now(), length, PIECE_BYTES_MAX) {
            Some(until) => source.resting(until),
            None => source.watched(),
        }
    }

    /// The source, after nothing was found in it: watched or left alone.
    fn empty(&mut self, source: Source) -> Source {
        match self.pace.lull(Instant::now()).filter(|_| self.left_bytes.is_none()) {
            Some(until) => source.resting(until),
            None => source.watched(),
        }
    }

    async fn readable(&self) {
        // What is wrong with it shows when it is read.
        match &self.source {
            Some(Source::Pipe(pipe)) => drop(pipe.readable().await.map(|mut guard| guard.retain_ready())),
            // A timer that is due fires with the next tick all the same, a millisecond later.
            Some(Source::Resting(_, until)) if *until <= Instant::now() => yield_now().await,
            Some(Source::Resting(_, until)) => sleep_until(*until).await,
            Some(Source::Terminal(terminal)) => drop(terminal.readable().await),
            None => std::future::pending().await,
        }
    }
}

impl Source {
    fn try_read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => {
                pipe.try_io(Interest::READABLE, |pipe| Ok(rustix::io::read(pipe, spare_capacity(buffer))?))
            }
            Self::Resting(pipe, _) => Ok(rustix::io::read(pipe, spare_capacity(buffer))?),
            Self::Terminal(terminal) => terminal.try_read(buffer),
        }
    }

    fn resting(self, until: Instant) -> Self {
        match self {
            Self::Pipe(pipe) => {
                let pipe = pipe.into_inner();
                // Where there may not be so much, it rests with less.
                let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
                Self::Resting(pipe, until)
            }
            Self::Resting(pipe, _) => Self::Resting(pipe, until),
            Self::Terminal(_) => self,
        }
    }

    /// To be read now, if nobody watches it.
    fn due(self) -> Self {
        match self {
            Self::Resting(pipe, _) => Self::Resting(pipe, Instant::now()),
            watched => watched,
        }
    }

    fn watched(self) -> Self {
        let Self::Resting(pipe, _) = self else { return self };
        match sys::watch(pipe) {
            Ok(pipe) => Self::Pipe(pipe),
            // No memory for it: until there is, it is looked at now and then.
            Err(failed) => Self::Resting(failed.into_parts().0, Instant::now() + UNWATCHED),
        }
    }

    fn readable_bytes(&self) -> usize {
        let bytes = match self {
            Self::Pipe(pipe) => sys::readable_bytes(pipe.get_ref()),
            Self::Resting(pipe, _) => sys::readable_bytes(pipe),
            Self::Terminal(terminal) => sys::readable_bytes(terminal.as_fd()),
        };
        bytes.unwrap_or(0)
    }
}

/// A whole pipe, before it rests.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// What a pipe holds once it rests: enough for the fastest writer, who would else wait for its end. Only what is written
/// takes memory.
const PIPE_BYTES: i32 = 512 << 10;

/// How long a flood that nobody reads waits after each whole pipe.
const FLOOD_REST: Duration = Duration::from_millis(2);

const UNWATCHED: Duration = Duration::from_millis(20);
