use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::buffer::spare_capacity;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{agent::sys::terminal, proto::process::PTY};

use crate::agent::sys::terminal::Size;

/// The agent's end of a process's terminal. When it is dropped, the terminal hangs up.
#[derive(Debug)]
pub(super) struct Terminal {
    master: AsyncFd<File>,
}

impl Terminal {
    /// A new terminal, and the end of it that the process gets.
    pub(super) fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        let (master, slave) = terminal::open(size)?;
        Ok((Self { master: terminal::watch(master)? }, slave))
    }

    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        terminal::resize(self.master.get_ref(), size)
    }

    /// Waits until there is something to read.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.master.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Reads what is there, into the room that `buffer` has; `Ok(0)` when no process has the terminal open any more.
    pub(super) fn try_read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self.master.try_io(Interest::READABLE, |master| Ok(rustix::io::read(master, spare_capacity(buffer))?)) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
            read => read,
        }
    }

    /// Writes all of `bytes`, at the pace of whoever reads them.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.master.async_io(Interest::WRITABLE, |mut master| master.write(bytes)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}

/// The size that a request names. What is 0 or absurd is refused: programs divide by it.
pub(super) fn size(pty: &PTY) -> Result<Size, String> {
    let Some(size) = pty.size.as_option() else { return Ok(DEFAULT_SIZE) };
    let side = |name: &str, value: u32| {
        u16::try_from(value)
            .ok()
            .filter(|value| *value > 0)
            .ok_or_else(|| format!("a terminal of {value} {name}; it may have 1 to {}", u16::MAX))
    };
    Ok(Size { columns: side("columns", size.cols)?, rows: side("rows", size.rows)? })
}

/// What a terminal has always been.
const DEFAULT_SIZE: Size = Size { columns: 80, rows: 24 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::process::pty;

    #[test]
    fn a_size_has_two_sides() {
        let sized = |cols, rows| {
            size(&PTY { size: pty::Size { cols, rows, ..Default::default() }.into(), ..Default::default() })
        };
        assert_eq!(sized(100, 40), Ok(Size { columns: 100, rows: 40 }));
        assert_eq!(size(&PTY::default()), Ok(DEFAULT_SIZE));
        assert!(sized(0, 40).is_err() && sized(100, 0).is_err());
        assert_eq!(sized(70_000, 1).unwrap_err(), "a terminal of 70000 columns; it may have 1 to 65535");
    }
}
