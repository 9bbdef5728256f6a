//! The end of the guest, when somebody in it or the host's power button asks for it.
//!
//! `poweroff`, `reboot` and `halt` of the usual kinds signal PID 1, and so does the kernel for Ctrl-Alt-Del. All of them
//! switch off: a guest that starts anew would be a machine that nobody asked for.

use std::{fs, io, sync::mpsc, thread, time::Duration};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot, set_cad_enabled},
        signal::{Signal, kill},
    },
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};

use crate::agent::console::complain;

/// Waits until somebody asks for the end.
pub(in crate::agent) async fn requested() -> io::Result<()> {
    // From now on Ctrl-Alt-Del, which is how some VMMs say it, is a SIGINT.
    set_cad_enabled(false)?;
    // What busybox's and sysvinit's commands send, and a power failure.
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut first = signal(SignalKind::user_defined1())?;
    let mut second = signal(SignalKind::user_defined2())?;
    let mut power = signal(SignalKind::from_raw(libc::SIGPWR))?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = first.recv() => {}
        _ = second.recv() => {}
        _ = power.recv() => {}
    }
    Ok(())
}

/// Ends every process, first by asking, then flushes what is written and switches off. Returns only if the kernel refuses.
pub(in crate::agent) async fn shut_down() {
    complain("switching off");
    for (wave, patience) in
        [(Signal::SIGTERM, TERM_MAX), (Signal::SIGCONT, Duration::ZERO), (Signal::SIGKILL, KILL_MAX)]
    {
        // PID 1 itself is spared.
        if kill(Pid::from_raw(-1), wave).is_err() {
            break;
        }
        let end = Instant::now() + patience;
        while Instant::now() < end && others_run() {
            sleep(Duration::from_millis(10)).await;
        }
    }
    switch_off();
}

/// Flushes the drives, lets nobody write to them any more, and switches off. Returns only if the kernel refuses.
pub(super) fn switch_off() {
    if !ends_within(FLUSH_MAX, flush) {
        complain("the drives do not answer: what is not flushed is lost");
    }
    // A machine that is told how to restart is one whose VMM takes a restart for its end; others have a power button.
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let restart = cmdline.split_ascii_whitespace().any(|word| word.starts_with("reboot="));
    let mode = if restart { RebootMode::RB_AUTOBOOT } else { RebootMode::RB_POWER_OFF };
    let Err(error) = reboot(mode);
    complain(&format!("switch off: {error}"));
}

fn flush() {
    nix::unistd::sync();
    // An overlay cannot always; its drives are flushed all the same.
    let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>);
}

/// Does `work` on a thread of its own, or here where there is none; whether it ended in time.
fn ends_within(time: Duration, work: fn()) -> bool {
    let (done, is_done) = mpsc::channel();
    let worker = thread::Builder::new().spawn(move || {
        work();
        // Whoever has stopped waiting need not know.
        let _ = done.send(());
    });
    match worker {
        Ok(_) => is_done.recv_timeout(time).is_ok(),
        Err(_) => {
            work();
            true
        }
    }
}

/// Whether there is a process other than this one and the kernel's own, which have no program.
fn others_run() -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| !cmdline.is_empty()))
}

/// How long processes may take when they are asked, and when they are not.
const TERM_MAX: Duration = Duration::from_secs(3);
const KILL_MAX: Duration = Duration::from_secs(1);

/// How long the drives may take for what is written: a guest that never switches off is worse than a lost write.
const FLUSH_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_does_not_end_is_not_waited_for() {
        let begun = Instant::now();
        assert!(ends_within(Duration::from_secs(20), || {}));
        assert!(!ends_within(Duration::from_millis(50), || thread::sleep(Duration::from_secs(20))));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
