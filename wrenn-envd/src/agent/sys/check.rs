use std::io;

use libc::c_int;

/// What a system call's result says: below 0 it has failed.
pub(super) fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
