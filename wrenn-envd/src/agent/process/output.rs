use std::{cell::RefCell, io, os::fd::AsFd as _, sync::Arc};

use tokio::net::unix::pipe;

use super::{journal::Journal, ring::Channel, terminal::Terminal};
use crate::agent::sys;

/// The agent's ends of a process's output: two pipes, or a terminal.
#[derive(Debug)]
pub(super) struct Outputs {
    first: Output,
    second: Output,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Output {
    channel: Channel,
    /// `None` once it is at its end.
    source: Option<Source>,
    /// What was there when the process ended, and has not been read yet.
    left_bytes: usize,
}

#[derive(Debug)]
enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

impl Outputs {
    pub(super) fn pipes(stdout: pipe::Receiver, stderr: pipe::Receiver) -> Self {
        let output = |channel, pipe| Output { channel, source: Some(Source::Pipe(pipe)), left_bytes: 0 };
        Self { first: output(Channel::Stdout, stdout), second: output(Channel::Stderr, stderr) }
    }

    pub(super) fn terminal(terminal: Arc<Terminal>) -> Self {
        let first = Output { channel: Channel::Pty, source: Some(Source::Terminal(terminal)), left_bytes: 0 };
        Self { first, second: Output { channel: Channel::Pty, source: None, left_bytes: 0 } }
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
    pub(super) fn note_what_is_left(&mut self) {
        for output in [&mut self.first, &mut self.second] {
            output.left_bytes = output.source.as_ref().map_or(0, Source::readable_bytes);
        }
    }

    /// Whether all that a process has left is read, and others have closed their ends or are waited for no longer.
    pub(super) fn are_drained(&self, grace_is_over: bool) -> bool {
        [&self.first, &self.second]
            .into_iter()
            .all(|output| output.source.is_none() || (grace_is_over && output.left_bytes == 0))
    }
}

impl Output {
    /// Moves what is there to the journal.
    pub(super) fn carry(&mut self, journal: &Journal) {
        let Some(source) = &self.source else { return };
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let length = source.try_read(scratch)?;
            journal.push(self.channel, &scratch[..length]);
            Ok::<_, io::Error>(length)
        });
        match read {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Ok(0) | Err(_) => self.source = None,
            Ok(length) => self.left_bytes = self.left_bytes.saturating_sub(length),
        }
    }

    async fn readable(&self) {
        // What is wrong with it shows when it is read.
        let _ = match &self.source {
            Some(Source::Pipe(pipe)) => pipe.readable().await,
            Some(Source::Terminal(terminal)) => terminal.readable().await,
            None => std::future::pending().await,
        };
    }
}

impl Source {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(terminal) => terminal.try_read(buffer),
        }
    }

    fn readable_bytes(&self) -> usize {
        let bytes = match self {
            Self::Pipe(pipe) => sys::readable_bytes(pipe.as_fd()),
            Self::Terminal(terminal) => sys::readable_bytes(terminal.as_fd()),
        };
        bytes.unwrap_or(0)
    }
}

thread_local! {
    /// A whole pipe fits. Shared, so that a process that is silent costs no memory.
    static SCRATCH: RefCell<[u8; 64 << 10]> = const { RefCell::new([0; 64 << 10]) };
}
