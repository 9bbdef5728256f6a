use std::{io, sync::Arc};

use tokio::{io::AsyncWriteExt as _, net::unix::pipe, sync::Mutex};

use super::terminal::Terminal;
use crate::agent::sys::terminal::Size;

/// What a process reads from.
#[derive(Debug)]
pub(super) enum Input {
    /// Nothing: it was started without.
    Null,
    /// `None` once it is closed.
    Pipe(Mutex<Option<pipe::Sender>>),
    /// The lock keeps one client's input in one piece.
    Terminal(Arc<Terminal>, Mutex<()>),
}

/// Why input was not given to a process, or its terminal not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    #[error("its standard input is closed")]
    Closed,
    #[error("the process has ended")]
    Ended,
    #[error("the process has closed its standard input")]
    Unread,
    #[error("its standard input cannot be written to")]
    Broken(#[source] io::Error),
    #[error("it has a terminal: send the input as `pty`")]
    HasTerminal,
    #[error("its standard input is a terminal, which is not closed: send the character 4 (Ctrl-D) as `pty`")]
    TerminalStaysOpen,
    #[error("it has no terminal: start it with `pty`")]
    NoTerminal,
}

impl Input {
    /// Writes all of `bytes` to the process, at the process's own pace.
    ///
    /// # Cancel-Safety
    ///
    /// Not cancel-safe: a part of `bytes` may have been written.
    pub(super) async fn send_stdin(&self, bytes: &[u8]) -> Result<(), InputError> {
        let stdin = match self {
            Self::Null => return Err(InputError::Closed),
            Self::Terminal(..) => return Err(InputError::HasTerminal),
            Self::Pipe(stdin) => stdin,
        };
        let mut stdin = stdin.lock().await;
        let writing = stdin.as_mut().ok_or(InputError::Closed)?.write_all(bytes).await;
        if writing.is_err() {
            *stdin = None;
        }
        writing.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => InputError::Unread,
            _ => InputError::Broken(error),
        })
    }

    /// The same, for a process at a terminal.
    pub(super) async fn send_pty(&self, bytes: &[u8]) -> Result<(), InputError> {
        let Self::Terminal(terminal, turn) = self else { return Err(InputError::NoTerminal) };
        let _turn = turn.lock().await;
        terminal.write_all(bytes).await.map_err(InputError::Broken)
    }

    /// Closes standard input, so that the process reads its end after all that was sent before. Closing it again does
    /// nothing.
    ///
    /// It waits for input that is being written, for as long as whoever sent that does: one who gives up lets go.
    pub(super) async fn close(&self) -> Result<(), InputError> {
        match self {
            Self::Null => {}
            Self::Pipe(stdin) => *stdin.lock().await = None,
            Self::Terminal(..) => return Err(InputError::TerminalStaysOpen),
        }
        Ok(())
    }

    pub(super) fn resize(&self, size: Size) -> Result<(), InputError> {
        let Self::Terminal(terminal, _) = self else { return Err(InputError::NoTerminal) };
        terminal.resize(size).map_err(InputError::Broken)
    }
}
