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
//! Clones that share their memory have it mapped by a call, too, which is injected once QEMU answers and waits for requests.
//!
//! Another call is injected for Firecracker's jailer. The kernel forgets the parent-death signal when the jailer
//! changes its user, so the signal is set again when the jailer executes Firecracker.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
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
        Via::Device(fd) => system_call(pid, libc::SYS_ioctl, [i64::from(fd), USERFAULTFD_IOC_NEW, flags, 0, 0, 0])?,
        Via::Syscall => system_call(pid, libc::SYS_userfaultfd, [flags, 0, 0, 0, 0, 0])?,
    };
    let theirs = RawFd::try_from(theirs).map_err(io::Error::other)?;
    Ok(duplicate(pidfd, theirs)?)
}

/// Closes a descriptor of the stopped process.
pub(super) fn close(pid: Pid, fd: RawFd) -> io::Result<()> {
    system_call(pid, libc::SYS_close, [i64::from(fd), 0, 0, 0, 0, 0]).map(drop)
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
    let set = [i64::from(libc::PR_SET_PDEATHSIG), i64::from(libc::SIGKILL), 0, 0, 0, 0];
    system_call(pid, libc::SYS_prctl, set).map(drop)
}

/// Replaces what a running process has mapped at `addr` by a private mapping of its descriptor `fd`. Call it from the thread that started the process. Whoever kills the process ends it; after an error it is to be
/// killed.
pub(super) fn map_private(pid: Pid, addr: u64, len: u64, fd: RawFd) -> io::Result<()> {
    ptrace::seize(pid, ptrace::Options::PTRACE_O_EXITKILL)?;
    stop_in_call(pid)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let (start, len) = (addr.cast_signed(), len.cast_signed());
    let map = [start, len, protection.into(), flags.into(), fd.into(), 0];
    let mapped = another_call(pid, libc::SYS_mmap, map)?;
    if mapped != start {
        return Err(io::Error::other("the memory was mapped elsewhere"));
    }
    detach(pid)
}

/// Lets the process go on its own.
pub(super) fn detach(pid: Pid) -> io::Result<()> {
    Ok(ptrace::detach(pid, None)?)
}

fn duplicate(pidfd: BorrowedFd<'_>, theirs: RawFd) -> rustix::io::Result<OwnedFd> {
    pidfd_getfd(pidfd, theirs, PidfdGetfdFlags::empty())
}

/// Runs one system call in a process that is stopped anywhere, and returns its result.
#[cfg(target_arch = "x86_64")]
fn system_call(pid: Pid, number: i64, arguments: Arguments) -> io::Result<i64> {
    let saved = ptrace::getregs(pid)?;
    let at = address(saved.rip)?;
    let word = ptrace::read(pid, at)?;
    ptrace::write(pid, at, (word & !0xffff) | SYSCALL_INSTRUCTION)?;
    let stepped = step_over(pid, &saved, saved.rip, number, arguments);
    ptrace::write(pid, at, word)?;
    ptrace::setregs(pid, saved)?;
    stepped
}

/// The same in a process that is stopped in a system call, which has an instruction for one just behind it: other threads
/// may be at any other.
#[cfg(target_arch = "x86_64")]
fn another_call(pid: Pid, number: i64, arguments: Arguments) -> io::Result<i64> {
    let saved = ptrace::getregs(pid)?;
    let behind = saved.rip - SYSCALL_INSTRUCTION_BYTES;
    if ptrace::read(pid, address(behind)?)? & 0xffff != SYSCALL_INSTRUCTION {
        return Err(io::Error::other("the process was not stopped in a system call"));
    }
    let stepped = step_over(pid, &saved, behind, number, arguments);
    // With these registers, the kernel begins the interrupted call again.
    ptrace::setregs(pid, saved)?;
    stepped
}

/// Steps over the instruction for a system call at `at`.
#[cfg(target_arch = "x86_64")]
fn step_over(pid: Pid, saved: &libc::user_regs_struct, at: u64, number: i64, arguments: Arguments) -> io::Result<i64> {
    let [rdi, rsi, rdx, r10, r8, r9] = arguments.map(i64::cast_unsigned);
    // Not in a system call, so the kernel must not think of restarting one.
    let orig_rax = u64::MAX;
    let rax = number.cast_unsigned();
    ptrace::setregs(pid, libc::user_regs_struct { rip: at, rax, orig_rax, rdi, rsi, rdx, r10, r8, r9, ..*saved })?;
    ptrace::step(pid, None)?;
    let stepped = waitpid(pid, None)?;
    let after = ptrace::getregs(pid)?;
    if !matches!(stepped, WaitStatus::Stopped(_, Signal::SIGTRAP)) {
        return Err(io::Error::other(format!("the injected system call was interrupted: {stepped:?}")));
    }
    if after.rip != at + SYSCALL_INSTRUCTION_BYTES {
        return Err(io::Error::other("the injected system call was not made"));
    }
    match after.rax.cast_signed() {
        error @ -4095..=-1 => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(libc::EINVAL))),
        value => Ok(value),
    }
}

/// Interrupts a running process that is traced, and again until that is in a system call.
#[cfg(target_arch = "x86_64")]
fn stop_in_call(pid: Pid) -> io::Result<()> {
    for _ in 0..STOPS_MAX {
        ptrace::interrupt(pid)?;
        let signal = match waitpid(pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(_, Signal::SIGTRAP, libc::PTRACE_EVENT_STOP) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            status => return Err(io::Error::other(format!("the process did not stop: {status:?}"))),
        };
        if signal.is_none() && ptrace::getregs(pid)?.orig_rax != u64::MAX {
            return Ok(());
        }
        ptrace::cont(pid, signal)?;
        std::thread::sleep(STOP_AGAIN);
    }
    Err(io::Error::other("the process makes no system call"))
}

#[cfg(target_arch = "x86_64")]
fn address(at: u64) -> io::Result<ptrace::AddressType> {
    Ok(std::ptr::with_exposed_provenance_mut(usize::try_from(at).map_err(io::Error::other)?))
}

/// What a system call is given.
type Arguments = [i64; 6];

/// The process waits for requests, so it is in a call most of the time.
#[cfg(target_arch = "x86_64")]
const STOPS_MAX: u32 = 10_000;
#[cfg(target_arch = "x86_64")]
const STOP_AGAIN: Duration = Duration::from_micros(200);

/// `0f 05`, as the low bytes of a little-endian word.
#[cfg(target_arch = "x86_64")]
const SYSCALL_INSTRUCTION: libc::c_long = 0x050f;

#[cfg(target_arch = "x86_64")]
const SYSCALL_INSTRUCTION_BYTES: u64 = 2;

#[cfg(not(target_arch = "x86_64"))]
fn system_call(_: Pid, _: i64, _: Arguments) -> io::Result<i64> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "wrenn injects system calls on x86_64 alone so far"))
}

#[cfg(not(target_arch = "x86_64"))]
use system_call as another_call;

#[cfg(not(target_arch = "x86_64"))]
fn stop_in_call(_: Pid) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "wrenn injects system calls on x86_64 alone so far"))
}
