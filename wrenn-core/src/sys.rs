//! What needs `unsafe` in this crate: code between fork and exec, mapping memory that a VM also maps, and the processor's
//! clock.
#![expect(unsafe_code, reason = "pre_exec, mmap and rdtsc")]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use memmap2::Mmap;
use nix::sys::ptrace;
use nix::sys::resource::{Resource, setrlimit};

/// What a VMM process is stripped of before its first instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChildLimits {
    /// Open descriptors.
    pub(crate) open_files_max: u64,
    /// Whether the child stops at its exec, for [the tracer](crate::vmm).
    pub(crate) traced: bool,
}

/// Makes `command` die with the thread that spawns it, gain no privilege, dump no core, and stay within `limits`.
pub(crate) fn restrict(command: &mut Command, limits: ChildLimits) {
    let set_up = move || -> io::Result<()> {
        // After the change of user, which clears it, and which std makes before this runs.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
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

/// The processor's time stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space run it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Maps `len` bytes of guest memory to read.
pub(crate) fn map_guest_memory(memory: &OwnedFd, len_bytes: usize) -> io::Result<Mmap> {
    // SAFETY: the memfd is sealed against shrinking (`GuestMemory::seal`), so no access faults. The guest may write
    // while it runs; wrenn reads this mapping while the VM is stopped.
    unsafe { memmap2::MmapOptions::new().len(len_bytes).map(memory) }
}
