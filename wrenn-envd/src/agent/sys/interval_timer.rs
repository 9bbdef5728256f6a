//! The interval timer of a PC (Intel 8254), which is reached by ports of the processor alone: many kernels have no `/dev/port`.

use std::{arch::asm, io};

use nix::errno::Errno;

/// Has channel 0, which counts and interrupts without an end since the machine was started, stop once it is at its end. This
/// thread has the right to its ports meanwhile.
pub(in crate::agent) fn stop_interval_timer() -> io::Result<()> {
    let allow = |whether: libc::c_int| {
        // SAFETY: the call takes three numbers.
        Errno::result(unsafe { libc::syscall(libc::SYS_ioperm, FIRST_PORT, PORTS, whether) })
    };
    allow(1)?;
    for (port, value) in [(MODE, INTERRUPT_ONCE), (CHANNEL_0, 0), (CHANNEL_0, 0)] {
        // SAFETY: the thread has the right to the ports, which are the timer's on every PC; nothing of this program's is there.
        unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
    }
    allow(0)?;
    Ok(())
}

const FIRST_PORT: libc::c_ulong = 0x40;
const PORTS: libc::c_ulong = 4;
const CHANNEL_0: u16 = 0x40;
const MODE: u16 = 0x43;
/// Of channel 0, with a count of two bytes, mode 0 (Intel's data sheet of the 8254).
const INTERRUPT_ONCE: u8 = 0x30;
