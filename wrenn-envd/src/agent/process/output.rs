use std::{
    fs::File,
    io::{self, PipeReader},
    os::fd::OwnedFd,
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::buffer::spare_capacity;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};

use super::{journal::Journal, pace::Pace, ring::Channel};
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
    kind: Kind,
    /// `None` once it is at its end.
    source: Option<Source>,
    pace: Pace,
    /// What was there when the process ended, and has not been read yet; `None` while it runs.
    left_bytes: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pipe,
    Terminal,
}

#[derive(Debug)]
enum Source {
    Watched(AsyncFd<File>),
    /// One that nobody watches until then: one that is watched wakes the agent up for every write.
    Resting(File, Instant),
}

impl Outputs {
    /// Those of a process that is about to begin. Each is read once before it is watched.
    pub(super) fn pipes(stdout: PipeReader, stderr: PipeReader) -> io::Result<Self> {
        let output = |channel, pipe: PipeReader| {
            fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let source = Source::Resting(OwnedFd::from(pipe).into(), Instant::now());
            Ok::<_, io::Error>(Output::new(channel, Kind::Pipe, Some(source)))
        };
        Ok(Self { first: output(Channel::Stdout, stdout)?, second: output(Channel::Stderr, stderr)? })
    }

    /// That of a process that is about to begin at a terminal, of which this is the agent's end.
    pub(super) fn terminal(reader: File) -> Self {
        let output = |source| Output::new(Channel::Pty, Kind::Terminal, source);
        Self { first: output(Some(Source::Resting(reader, Instant::now()))), second: output(None) }
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
        let output = |channel, source| Output::new(channel, Kind::Pipe, source);
        Self { first: output(Channel::Stdout, Some(source)), second: output(Channel::Stderr, None) }
    }

    /// How many pipes are not at their end.
    pub(super) fn open_pipes(&self) -> u32 {
        [&self.first, &self.second].into_iter().map(|output| u32::from(output.is_open_pipe())).sum()
    }

    /// Reads the pipes to their ends, and keeps nothing. A terminal hangs up.
    pub(super) async fn discard(mut self) {
        for output in [&mut self.first, &mut self.second] {
            output.left_bytes = None;
            output.source = output.source.take().filter(|_| output.kind == Kind::Pipe);
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
    fn new(channel: Channel, kind: Kind, source: Option<Source>) -> Self {
        Self { channel, kind, source, pace: Pace::default(), left_bytes: None }
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
        self.source.is_some() && self.kind == Kind::Pipe
    }

    /// Hands what is there to `sink`; returns how many bytes that were.
    fn take(&mut self, sink: impl FnOnce(Vec<u8>)) -> usize {
        let Some(source) = self.source.take() else { return 0 };
        // Room that is not needed was never touched, and costs nothing.
        let mut piece = Vec::with_capacity(PIECE_BYTES_MAX);
        let read = self.kind.end_of(source.try_read(&mut piece));
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
        match self.pace.rest(Instant::now(), length, self.kind.piece_bytes()) {
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
            Some(Source::Watched(output)) => drop(output.readable().await.map(|mut guard| guard.retain_ready())),
            // A timer that is due fires with the next tick all the same, a millisecond later.
            Some(Source::Resting(_, until)) if *until <= Instant::now() => yield_now().await,
            Some(Source::Resting(_, until)) => sleep_until(*until).await,
            None => std::future::pending().await,
        }
    }
}

impl Kind {
    /// What a read has found. A terminal that no process has open any more fails, and is at its end.
    fn end_of(self, read: io::Result<usize>) -> io::Result<usize> {
        match read {
            Err(error) if self == Self::Terminal && error.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }

    /// What a read finds where more is there already.
    fn piece_bytes(self) -> usize {
        match self {
            Self::Pipe => PIECE_BYTES_MAX,
            Self::Terminal => TERMINAL_BYTES,
        }
    }
}

impl Source {
    fn try_read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Watched(output) => {
                output.try_io(Interest::READABLE, |output| Ok(rustix::io::read(output, spare_capacity(buffer))?))
            }
            Self::Resting(output, _) => Ok(rustix::io::read(output, spare_capacity(buffer))?),
        }
    }

    fn resting(self, until: Instant) -> Self {
        match self {
            Self::Watched(output) => {
                let output = output.into_inner();
                // Where there may not be so much, and at a terminal, it rests with less.
                let _ = fcntl(&output, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
                Self::Resting(output, until)
            }
            Self::Resting(output, _) => Self::Resting(output, until),
        }
    }

    /// To be read now, if nobody watches it.
    fn due(self) -> Self {
        match self {
            Self::Resting(output, _) => Self::Resting(output, Instant::now()),
            watched => watched,
        }
    }

    fn watched(self) -> Self {
        let Self::Resting(output, _) = self else { return self };
        match sys::watch(output) {
            Ok(output) => Self::Watched(output),
            // No memory for it: until there is, it is looked at now and then.
            Err(failed) => Self::Resting(failed.into_parts().0, Instant::now() + UNWATCHED),
        }
    }

    fn readable_bytes(&self) -> usize {
        let bytes = match self {
            Self::Watched(output) => sys::readable_bytes(output.get_ref()),
            Self::Resting(output, _) => sys::readable_bytes(output),
        };
        bytes.unwrap_or(0)
    }
}

/// A whole pipe, before it rests.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// A terminal's read ends with a buffer of the kernel's, of up to 4 KiB, and more may be in the next one.
const TERMINAL_BYTES: usize = 2 << 10;

/// What a pipe holds once it rests: enough for the fastest writer, who would else wait for its end. Only what is written
/// takes memory.
const PIPE_BYTES: i32 = 512 << 10;

/// How long a flood that nobody reads waits after each whole pipe.
const FLOOD_REST: Duration = Duration::from_millis(2);

const UNWATCHED: Duration = Duration::from_millis(20);
