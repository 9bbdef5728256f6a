use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{agent::sys::terminal, proto::process::PTY};

use crate::agent::sys::terminal::Size;

/// The agent's end of a process's terminal, as far as it is written to. When this and the end that is read are dropped, the
/// terminal hangs up.
#[derive(Debug)]
pub(super) struct Terminal {
    master: AsyncFd<File>,
}

/// The ends of a new terminal.
pub(super) struct Ends {
    pub(super) terminal: Terminal,
    /// What the process writes is read here. It does not block, and nobody watches it yet.
    pub(super) reader: File,
    /// The process's.
    pub(super) slave: OwnedFd,
}

impl Terminal {
    /// A new terminal.
    pub(super) fn open(size: Size) -> io::Result<Ends> {
        let (master, slave) = terminal::open(size)?;
        let reader = File::from(master.try_clone()?);
        Ok(Ends { terminal: Self { master: terminal::watch(master)? }, reader, slave })
    }

    pub(super) fn resize(&self, size: Size) -> io::Result<()> {
        terminal::resize(self.master.get_ref(), size)
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
