//! What needs `unsafe` in this crate: code between fork and exec, the ioctl that makes a userfaultfd, and the
//! processor's clock.
#![expect(unsafe_code, reason = "pre_exec, ioctl and rdtsc")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::ptrace;
use nix::sys::resource::{Resource, setrlimit};
use rustix::process::{Gid, Pid, Uid};

/// What a VMM process is stripped of before its first instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildLimits {
    /// Open descriptors.
    pub(crate) open_files_max: u64,
    /// Whether the child stops at its exec, for [the tracer](crate::vmm).
    pub(crate) traced: bool,
    /// Whom the child becomes, with no other group.
    pub(crate) user: Option<(Uid, Gid)>,
    /// The process that starts the child.
    pub(crate) parent: Pid,
}

/// Makes `command` die with the thread that spawns it, gain no privilege, dump no core, and stay within `limits`.
///
/// The child's directory, which std enters before, may be below one that is closed to the child's user.
pub(crate) fn restrict(command: &mut Command, limits: ChildLimits) {
    let set_up = move || -> io::Result<()> {
        if let Some((uid, gid)) = limits.user {
            // The child has one thread, so these are the whole process's.
            rustix::thread::set_thread_groups(&[])?;
            rustix::thread::set_thread_gid(gid)?;
            rustix::thread::set_thread_uid(uid)?;
        }
        // After the change of user, which clears it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // A parent that ended before that sends no signal.
        if rustix::process::getppid() != Some(limits.parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        rustix::thread::set_no_new_privs(true)?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setrlimit(Resource::RLIMIT_NOFILE, limits.open_files_max, limits.open_files_max)?;
        if limits.traced {
            ptrace::traceme()?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes plain system calls; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(set_up) };
}

/// Has the child of `command` do `first`, which makes system calls alone: it neither allocates nor takes a lock.
pub(crate) fn begin_with(command: &mut Command, first: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: between fork and exec the closure makes plain system calls, as it has to.
    unsafe { command.pre_exec(first) };
}

/// Keeps from `command` every descriptor of this program but the three standard ones, also those that are not marked to
/// be closed: the program may have inherited some that it does not know. Mappings of descriptors come after this.
pub(crate) fn inherit_nothing(command: &mut Command) {
    let mark = || {
        // SAFETY: the call changes flags of the child's descriptors alone, and closes none before its exec.
        let marked = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if marked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec the closure makes one plain system call; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(mark) };
}

/// The processor's time stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space run it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `_IO(0xAA, 0x00)`, include/uapi/linux/userfaultfd.h
pub(crate) const USERFAULTFD_IOC_NEW: i64 = 0xAA00;

mod request {
    //! A module of its own, since the macro makes the request public.
    nix::ioctl_write_int_bad!(userfaultfd_new, super::USERFAULTFD_IOC_NEW);
}

/// Makes a userfaultfd of this process by `/dev/userfaultfd`.
pub(crate) fn new_userfaultfd(device: &File) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open, and the argument is flags alone.
    let fd = unsafe { request::userfaultfd_new(device.as_raw_fd(), libc::O_CLOEXEC | libc::O_NONBLOCK) }?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_whose_parent_has_ended_does_not_run() {
        let start = |parent| {
            let mut command = Command::new("true");
            restrict(&mut command, ChildLimits { open_files_max: 64, traced: false, user: None, parent });
            command.status()
        };
        assert!(start(rustix::process::getpid()).unwrap().success());
        // The process that has the orphans of a system, and did not start this one's child.
        assert_eq!(start(Pid::INIT).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
