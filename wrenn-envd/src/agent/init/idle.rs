//! What would wake up a guest that does nothing.

use std::{fs, io, path::Path};

use crate::agent::console::complain;
#[cfg(target_arch = "x86_64")]
use crate::agent::sys::stop_interval_timer;

/// Stops what goes on in a guest that does nothing, and is of no use there.
pub(super) fn quiet() {
    #[cfg(target_arch = "x86_64")]
    stop_interval_timer_if_unused();
    // Twice a second the kernel looks whether to move memory together. What it moves is a clone's own from then on.
    match fs::write("/proc/sys/vm/compaction_proactiveness", "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            complain(&format!("leave memory where it is: {error}"))
        }
        _ => {}
    }
}

/// Stops the machine's first timer where the kernel has another. It counts from the start of the machine on, and a VMM that
/// emulates it wakes up 36 times a second for interrupts that nobody gets. (Newer kernels do that themselves.)
#[cfg(target_arch = "x86_64")]
fn stop_interval_timer_if_unused() {
    match is_unused(Path::new("/sys/devices/system/clockevents")) {
        Ok(true) => {
            if let Err(error) = stop_interval_timer() {
                complain(&format!("stop the interval timer: {error}"));
            }
        }
        Ok(false) => {}
        Err(error) => complain(&format!("ask which timers the kernel has: {error}")),
    }
}

/// Whether no processor has the interval timer, and none that sleeps is woken up by it.
#[cfg(target_arch = "x86_64")]
fn is_unused(clock_events: &Path) -> io::Result<bool> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(clock_events)? {
        match fs::read_to_string(entry?.path().join("current_device")) {
            Ok(device) => devices.push(device.trim().to_owned()),
            // What else a directory of the kernel's has.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory => {}
            Err(error) => return Err(error),
        }
    }
    Ok(!devices.is_empty() && devices.iter().all(|device| device != "pit"))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_the_kernel_has_is_not_stopped() {
        for (devices, unused) in [
            (&["lapic\n", "lapic\n"][..], true),
            (&["lapic-deadline\n", "(null)\n"], true),
            (&["lapic\n", "pit\n"], false),
            (&["pit\n"], false),
            (&[], false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("uevent"), "").unwrap();
            for (number, device) in devices.iter().enumerate() {
                let of_processor = directory.path().join(format!("clockevent{number}"));
                fs::create_dir(&of_processor).unwrap();
                fs::write(of_processor.join("current_device"), device).unwrap();
            }
            assert_eq!(is_unused(directory.path()).unwrap(), unused, "{devices:?}");
        }
        assert!(is_unused(Path::new("/none")).is_err());
    }
}
