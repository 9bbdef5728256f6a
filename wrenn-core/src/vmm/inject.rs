//! A userfaultfd in another process's address space, by one injected system call.
//!
//! A userfaultfd belongs to the address space that made it, and QEMU has no protocol to make one. So wrenn starts QEMU
//! traced; at the exec stop, when the new address space has one thread and has run nothing, the tracer puts a
//! `syscall` instruction at the instruction pointer, steps over it, and puts everything back. The descriptor then
//! comes over by `pidfd_getfd`.
//!
//! ```text
//!  spawn (PTRACE_TRACEME) ─▶ exec stop ─▶ userfaultfd_in ─▶ restore registers ─▶ detach
//! ```
//!
//! `USERFAULTFD_IOC_NEW` on an inherited `/dev/userfaultfd` also makes one for the caller's address space, and checks
//! the rights of whoever opened the device: so QEMU itself can be unprivileged and faults of kernel mode are still
//! served.
//!
//! A third injected call closes the device in QEMU, which could otherwise make more userfaultfds.
//!
//! Another call is injected for Firecracker's jailer. The kernel forgets the parent-death signal when the jailer
//! changes its user, so the signal is set again when the jailer executes Firecracker.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::sys::USERFAULTFD_IOC_NEW;

/// How the traced process is to make its userfaultfd.
#[derive(Debug, Clone, Copy)]
pub(super) enum Via {
    /// Through `/dev/userfaultfd`, which the process has inherited under this number.
    Device(RawFd),
    /// By the system call, which needs `CAP_SYS_PTRACE` in the process or `vm.unprivileged_userfaultfd=1`.
    Syscall,
}

/// Waits for the exec stop of a child that was started with `PTRACE_TRACEME`. Call from the thread that spawned it.
/// Whoever kills the child ends the wait.
pub(super) fn wait_for_exec(pid: Pid) -> io::Result<()> {
    match waitpid(pid, None)? {
        WaitStatus::Stopped(_, Signal::SIGTRAP) => {
            ptrace::setoptions(pid, ptrace::Options::PTRACE_O_EXITKILL)?;
            Ok(())
        }
        status => Err(io::Error::other(format!("the process did not stop at its exec: {status:?}"))),
    }
}

/// Makes a userfaultfd in the stopped process, and brings it here. The process is left stopped, as it was.
pub(super) fn userfaultfd_in(pid: Pid, pidfd: BorrowedFd<'_>, via: Via) -> io::Result<OwnedFd> {
    let flags = i64::from(libc::O_CLOEXEC | libc::O_NONBLOCK);
    let theirs = match via {
        Via::Device(fd) => system_call(pid, libc::SYS_ioctl, [i64::from(fd), USERFAULTFD_IOC_NEW, flags])?,
        Via::Syscall => system_call(pid, libc::SYS_userfaultfd, [flags, 0, 0])?,
    };
    let theirs = RawFd::try_from(theirs).map_err(io::Error::other)?;
    Ok(duplicate(pidfd, theirs)?)
}

/// Closes a descriptor of the stopped process.
pub(super) fn close(pid: Pid, fd: RawFd) -> io::Result<()> {
    system_call(pid, libc::SYS_close, [i64::from(fd), 0, 0]).map(drop)
}

/// Lets the stopped process run until it executes another program, and stops it there.
pub(super) fn next_exec(pid: Pid) -> io::Result<()> {
    // Without `PTRACE_O_TRACEEXEC`, whose stop is inside of the exec: a step from there ends with the exec, and an
    // injected call would not be made.
    let mut signal = None;
    loop {
        ptrace::cont(pid, signal.take())?;
        match waitpid(pid, None)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => return Ok(()),
            WaitStatus::Stopped(_, other) => signal = Some(other),
            status => return Err(io::Error::other(format!("it ended before it executed the VMM: {status:?}"))),
        }
    }
}

/// Makes the stopped process die with the thread that started it.
pub(super) fn die_with_parent(pid: Pid) -> io::Result<()> {
    let set = [i64::from(libc::PR_SET_PDEATHSIG), i64::from(libc::SIGKILL), 0];
    system_call(pid, libc::SYS_prctl, set).map(drop)
}

/// Lets the process go on its own.
pub(super) fn detach(pid: Pid) -> io::Result<()> {
    Ok(ptrace::detach(pid, None)?)
}

fn duplicate(pidfd: BorrowedFd<'_>, theirs: RawFd) -> rustix::io::Result<OwnedFd> {
    pidfd_getfd(pidfd, theirs, PidfdGetfdFlags::empty())
}

/// Runs one system call in a stopped process and returns its result.
#[cfg(target_arch = "x86_64")]
fn system_call(pid: Pid, number: i64, arguments: [i64; 3]) -> io::Result<i64> {
    let saved = ptrace::getregs(pid)?;
    let at = std::ptr::with_exposed_provenance_mut(usize::try_from(saved.rip).map_err(io::Error::other)?);
    let word = ptrace::read(pid, at)?;
    let mut registers = saved;
    registers.rax = number.cast_unsigned();
    // Not in a system call, so the kernel must not think of restarting one.
    registers.orig_rax = u64::MAX;
    registers.rdi = arguments[0].cast_unsigned();
    registers.rsi = arguments[1].cast_unsigned();
    registers.rdx = arguments[2].cast_unsigned();
    ptrace::write(pid, at, (word & !0xffff) | SYSCALL_INSTRUCTION)?;
    ptrace::setregs(pid, registers)?;
    ptrace::step(pid, None)?;
    let stepped = waitpid(pid, None)?;
    let after = ptrace::getregs(pid)?;
    ptrace::write(pid, at, word)?;
    ptrace::setregs(pid, saved)?;
    if !matches!(stepped, WaitStatus::Stopped(_, Signal::SIGTRAP)) {
        return Err(io::Error::other(format!("the injected system call was interrupted: {stepped:?}")));
    }
    if after.rip != saved.rip + SYSCALL_INSTRUCTION_BYTES {
        return Err(io::Error::other("the injected system call was not made"));
    }
    match after.rax.cast_signed() {
        error @ -4095..=-1 => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(libc::EINVAL))),
        value => Ok(value),
    }
}

/// `0f 05`, as the low bytes of a little-endian word.
#[cfg(target_arch = "x86_64")]
const SYSCALL_INSTRUCTION: libc::c_long = 0x050f;

#[cfg(target_arch = "x86_64")]
const SYSCALL_INSTRUCTION_BYTES: u64 = 2;

#[cfg(not(target_arch = "x86_64"))]
fn system_call(_: Pid, _: i64, _: [i64; 3]) -> io::Result<i64> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "wrenn injects system calls on x86_64 alone so far"))
}
