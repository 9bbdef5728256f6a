//! Pseudo-terminals.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr},
    unistd::{Gid, Uid, fchown},
};

use tokio::io::{Interest, unix::AsyncFd};

use super::check::check;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Size {
    pub(in crate::agent) columns: u16,
    pub(in crate::agent) rows: u16,
}

/// Both ends of a new terminal: the agent's, which does not block, and the process's.
pub(in crate::agent) fn open(size: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    // Like all that `std` opens, it is closed on exec.
    let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name)?;
    let master = OwnedFd::from(master);
    resize(&master, size)?;
    edit_characters(&slave)?;
    Ok((master, slave.into()))
}

/// Has the terminal's line editing take away whole characters of UTF-8, and not single bytes.
fn edit_characters(slave: impl AsFd) -> io::Result<()> {
    let mut settings = tcgetattr(&slave)?;
    settings.input_flags.insert(InputFlags::IUTF8);
    Ok(tcsetattr(&slave, SetArg::TCSANOW, &settings)?)
}

/// Lets the runtime watch the agent's end for room to write to, which must not block. What the process writes wakes nobody.
pub(in crate::agent) fn watch(master: OwnedFd) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, and is that same descriptor until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(File::from(master), Interest::WRITABLE) }?)
}

/// Gives a terminal to the user who will work at it, as a login does.
pub(in crate::agent) fn give_to(slave: impl AsFd, uid: Uid) -> io::Result<()> {
    Ok(fchown(slave, Some(uid), None::<Gid>)?)
}

/// Changes a terminal's size; the processes in its foreground hear of it by `SIGWINCH`.
pub(in crate::agent) fn resize(master: impl AsFd, size: Size) -> io::Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a `winsize`, which is live.
    check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
}
