//! Finds out which acceleration works on this machine. Under some hypervisors `/dev/kvm` can be opened, but an ordinary
//! guest makes no progress. So the probe looks at the processor's flags and runs a short guest that has to finish.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::patience::patient;
use crate::program::status_within;
use crate::vmm::driver::Driver;
use crate::vmm::shape::Acceleration;

/// The VMM and the acceleration that were chosen for this machine, as [`Host::probe`](crate::Host::probe) tells them.
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) {
/// let probe = host.probe();
/// println!("{:?} on {:?}: {}", probe.driver, probe.acceleration, probe.reason);
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Probe {
    /// The VMM that runs the sandboxes.
    pub driver: Driver,
    /// What executes the guests' instructions.
    pub acceleration: Acceleration,
    /// Why these were chosen, in a sentence.
    pub reason: String,
}

/// Chooses QEMU's acceleration. `WRENN_ACCELERATION=kvm|tcg` decides without a probe.
pub(crate) async fn probe(qemu: &Path) -> Probe {
    match std::env::var("WRENN_ACCELERATION").as_deref() {
        Ok("kvm") => return choose(Acceleration::Kvm, "WRENN_ACCELERATION says so"),
        Ok("tcg") => return choose(Acceleration::Tcg, "WRENN_ACCELERATION says so"),
        Ok("") | Err(_) => {}
        Ok(other) => tracing::warn!(other, "WRENN_ACCELERATION is neither kvm nor tcg and is ignored"),
    }
    if !has_virtualization() {
        return choose(Acceleration::Tcg, "the processor offers no virtualization (no vmx or svm flag)");
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return choose(
            Acceleration::Tcg,
            format!("/dev/kvm cannot be opened ({error}): give this user the group `kvm`"),
        );
    }
    match finishes_a_guest(qemu, "kvm").await {
        Ok(true) => choose(Acceleration::Kvm, "a short guest ran to its end under KVM"),
        Ok(false) => choose(Acceleration::Tcg, "a short guest made no progress under KVM"),
        Err(error) => choose(Acceleration::Tcg, format!("the KVM probe could not be run: {error}")),
    }
}

fn choose(acceleration: Acceleration, reason: impl Into<String>) -> Probe {
    Probe { driver: Driver::Qemu, acceleration, reason: reason.into() }
}

/// Whether the processor has the extensions that KVM needs.
pub(crate) fn has_virtualization() -> bool {
    shows_virtualization(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn shows_virtualization(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// Runs a firmware of three instructions. The last instruction ends QEMU with a status that nothing else gives.
async fn finishes_a_guest(qemu: &Path, accel: &str) -> std::io::Result<bool> {
    let mut firmware = tempfile::NamedTempFile::new()?;
    firmware.write_all(&probe_firmware())?;
    let mut arguments: Vec<OsString> = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "microvm"]
        .into_iter()
        .chain(["-m", "16M", "-accel", accel, "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
        .map(OsString::from)
        .collect();
    arguments.push(firmware.path().into());
    let ended = status_within(qemu, arguments, patient(PROBE_TIMEOUT)).await?;
    Ok(ended.is_some_and(|status| status.code() == Some(DEBUG_EXIT_STATUS)))
}

const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// `isa-debug-exit` ends QEMU with `(value << 1) | 1`; the value is 1.
const DEBUG_EXIT_STATUS: i32 = 3;

/// The reset vector is 16 bytes before the end of the firmware.
fn probe_firmware() -> Vec<u8> {
    let mut firmware = vec![0xf4; 64 * 1024]; // hlt
    let reset = firmware.len() - 16;
    firmware[reset..reset + 4].copy_from_slice(&[0xb0, 0x01, 0xe6, 0xf4]); // mov al, 1; out 0xf4, al
    firmware
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_decide_and_not_words_that_contain_them() {
        assert!(shows_virtualization("model name: x\nflags : fpu svm de\n"));
        assert!(shows_virtualization("flags\t\t: fpu vmx\n"));
        assert!(!shows_virtualization("flags : fpu svm_lock novmx\nbugs : svm\n"));
        assert!(!shows_virtualization(""));
    }

    #[tokio::test]
    async fn the_probe_guest_finishes_where_guests_do() {
        let Some(qemu) = crate::program::on_path(crate::vmm::qemu::binary::PROGRAM) else {
            println!("skipped: the_probe_guest_finishes_where_guests_do: qemu-system-x86_64 is not installed");
            return;
        };
        assert!(finishes_a_guest(&qemu, "tcg").await.unwrap());
    }
}
