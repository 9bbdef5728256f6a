use std::io;

use super::check::check;

/// A signal of Linux, of those for real time too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct SignalNumber(i32);

impl SignalNumber {
    pub(in crate::agent) const KILL: Self = Self(libc::SIGKILL);

    /// `None` where Linux has no such signal: they are 1 to 64.
    pub(in crate::agent) fn new(number: i32) -> Option<Self> {
        (1..=64).contains(&number).then_some(Self(number))
    }
}

/// Signals the process of that number and everything in its group.
pub(in crate::agent) fn signal_group(pid: u32, signal: SignalNumber) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: it takes two numbers.
    check(unsafe { libc::killpg(pid, signal.0) })
}
