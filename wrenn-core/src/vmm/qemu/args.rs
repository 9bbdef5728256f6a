//! QEMU's command line, which has to describe the same machine at every restore.

use std::os::fd::RawFd;

use crate::vmm::shape::{Acceleration, MachineShape};

/// The numbers of the descriptors that QEMU inherits. QEMU opens no file of a sandbox by its path.
pub(super) const MEMORY_FD: RawFd = 40;
pub(super) const BASE_FD: RawFd = 41;
pub(super) const DRIVE_FD: RawFd = 42;
pub(super) const TAP_FD: RawFd = 43;
pub(super) const QMP_FD: RawFd = 44;
pub(super) const KERNEL_FD: RawFd = 45;
pub(super) const INITRAMFS_FD: RawFd = 46;

/// Whether the machine is to boot, or to wait for the state of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    Boot,
    Incoming,
}

/// The whole command line after the program's name.
pub(super) fn arguments(shape: &MachineShape, start: Start, guest_mac: &str) -> Vec<String> {
    let MachineShape { vcpus, memory_mib, acceleration, .. } = shape;
    let mut args = Args::default();
    args.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
    args.option("-display", "none");
    args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    args.option("-machine", "microvm,acpi=on,rtc=on,isa-serial=on,memory-backend=mem");
    match acceleration {
        Acceleration::Kvm => args.option("-accel", "kvm").option("-cpu", "host"),
        Acceleration::Tcg => args.option("-accel", "tcg,thread=multi").option("-cpu", TCG_CPU),
    };
    args.option("-smp", format!("{vcpus}"));
    args.option("-m", format!("{memory_mib}M"));
    let memory = format!("memory-backend-file,id=mem,size={memory_mib}M,mem-path=/proc/self/fd/{MEMORY_FD},share=on");
    args.option("-object", memory);
    args.drive("base", 1, BASE_FD, "read-only=on");
    args.drive("drive", 2, DRIVE_FD, "read-only=off,discard=unmap");
    args.option("-netdev", format!("tap,id=net,fd={TAP_FD}"));
    args.option("-device", format!("virtio-net-device,netdev=net,mac={guest_mac}"));
    args.option("-chardev", format!("socket,id=qmp,fd={QMP_FD}")).option("-mon", "chardev=qmp,mode=control");
    args.option("-chardev", "stdio,id=console,signal=off").option("-serial", "chardev:console");
    match start {
        Start::Boot => {
            args.option("-kernel", format!("/proc/self/fd/{KERNEL_FD}"));
            args.option("-initrd", format!("/proc/self/fd/{INITRAMFS_FD}"));
            args.option("-append", kernel_command_line(shape));
        }
        // The machine starts when told to: its memory has to be in place before a vCPU runs.
        Start::Incoming => {
            args.option("-incoming", "defer").flag("-S");
        }
    }
    args.0
}

/// A model with what today's user code expects (SSE 4.2, `rdrand`), and no more: each vector extension beyond that
/// makes emulated code slower, since the C library then uses it for every `memcpy`.
///
/// With `arat` its timer is one that goes on while the processor sleeps. Linux takes no other for single shots where the machine
/// has no second timer, as microvm has none: it would tick 250 times a second for as long as it runs, which took 5 % of a
/// processor for each guest that did nothing, and no sleep would end before the next tick.
const TCG_CPU: &str = "Nehalem,+arat,+rdrand,+rdseed,+fsgsbase,+smep,+smap";

fn kernel_command_line(shape: &MachineShape) -> String {
    let mut line = "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 random.trust_cpu=on \
        net.ifnames=0 \
        wrenn.base=/dev/vda wrenn.drive=/dev/vdb wrenn.addr=169.254.0.21/30 wrenn.gw=169.254.0.22 \
        wrenn.addr6=fec0::15/126 wrenn.gw6=fec0::16"
        .to_owned();
    if shape.acceleration == Acceleration::Tcg {
        // An emulated processor speculates on nothing. And QEMU keeps its translations by virtual address: a program
        // that is somewhere else at every start is translated at every start, which is most of the time of a small one.
        line.push_str(" mitigations=off norandmaps");
    }
    if let Some(khz) = shape.tsc_khz {
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable no_timer_check"));
    }
    line
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.to_owned());
        self
    }

    fn option(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.push(name.to_owned());
        self.0.push(value.into());
        self
    }

    fn drive(&mut self, id: &str, set: u32, fd: RawFd, mode: &str) -> &mut Self {
        let file = format!("driver=file,filename=/dev/fdset/{set},locking=off,node-name={id}-file,{mode}");
        let read_only = if mode.starts_with("read-only=on") { "on" } else { "off" };
        self.option("-add-fd", format!("fd={fd},set={set}"));
        // QEMU would write a file out, and have the host forget what it has of it, each time that a machine's state is
        // loaded or that the machine goes on after a save: for a file that another host may have written.
        self.option("-blockdev", format!("{file},cache.no-flush=on,auto-read-only=off,drop-cache=off"));
        let raw = format!("driver=raw,node-name={id},file={id}-file,read-only={read_only},discard=unmap");
        self.option("-blockdev", format!("{raw},cache.no-flush=on"));
        self.option("-device", format!("virtio-blk-device,drive={id}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> MachineShape {
        MachineShape { vcpus: 2, memory_mib: 256, acceleration: Acceleration::Tcg, tsc_khz: Some(2_000_000) }
    }

    #[test]
    fn a_restore_describes_the_same_machine_as_the_boot() {
        let devices = |start| {
            let args = arguments(&shape(), start, "02:00:00:00:00:01");
            args.chunks(1).map(|a| a[0].clone()).filter(|a| a.contains("virtio") || a.contains("microvm")).collect()
        };
        let boot: Vec<String> = devices(Start::Boot);
        assert_eq!(boot, devices(Start::Incoming));
        assert_eq!(boot.len(), 4);
    }

    #[test]
    fn only_an_emulated_guest_goes_without_the_kernels_hardening() {
        let kvm = MachineShape { acceleration: Acceleration::Kvm, tsc_khz: None, ..shape() };
        for word in ["mitigations=off", "norandmaps"] {
            assert!(
                kernel_command_line(&shape()).contains(word) && !kernel_command_line(&kvm).contains(word),
                "{word}"
            );
        }
    }

    /// The paths in arguments, wherever they are in one, that are neither an inherited descriptor nor the guest's own.
    fn host_paths(arguments: &[String]) -> Vec<String> {
        let mut of_the_guest = false;
        let mut found = Vec::new();
        for argument in arguments {
            let words = argument.split([',', '=', ':', ' ']).filter(|word| word.contains('/') && !of_the_guest);
            let inherited = |word: &&str| word.starts_with("/proc/self/fd/") || word.starts_with("/dev/fdset/");
            found.extend(words.filter(|word| !inherited(word)).map(str::to_owned));
            of_the_guest = argument == "-append";
        }
        found
    }

    #[test]
    fn no_argument_names_a_path_of_the_host() {
        for start in [Start::Boot, Start::Incoming] {
            let mut all = arguments(&shape(), start, "02:00:00:00:00:01");
            assert_eq!(host_paths(&all), Vec::<String>::new());
            all.push("driver=file,filename=/var/lib/drive,locking=off".to_owned());
            assert_eq!(host_paths(&all), ["/var/lib/drive"]);
        }
    }
}
