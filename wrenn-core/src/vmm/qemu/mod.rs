//! The QEMU driver: an unpatched `qemu-system-x86_64`, the `microvm` machine, under KVM or software emulation.

mod args;
pub(crate) mod binary;
mod cloned;
mod compared;
mod drive;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod lazy;
mod machine;
mod nbd;
mod qmp;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use async_trait::async_trait;
use tokio::net::UnixStream;

use crate::error::{Error, Result};
use crate::network::slot::Plug;
use crate::runtime::blocking;
use crate::vmm::devices;
use crate::vmm::identity::Identity;
use crate::vmm::launch::{Enter, Launch, Tracing, Userfaultfds};
use crate::vmm::machine::{Machine, Standby, Vmm};
use crate::vmm::memory::GuestMemory;
use crate::vmm::paging::Paging;
use crate::vmm::parts::{BootMedia, Parts, Restore};
use crate::vmm::process::Process;
use crate::vmm::qemu::args::Start;
use crate::vmm::qemu::binary::Binary;
use crate::vmm::qemu::machine::QemuMachine;
use crate::vmm::shape::{Acceleration, MachineShape};
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::Ways;

/// The driver, bound to one binary.
#[derive(Debug)]
pub(crate) struct Qemu {
    program: PathBuf,
    version: String,
    ways: Ways,
}

impl Qemu {
    /// Finds QEMU: as `named`, else by `WRENN_QEMU`, else on the `PATH`.
    pub(crate) async fn find(named: Option<PathBuf>) -> Result<Self> {
        let Binary { path: program, version } = Binary::find(named).await?;
        let ways = blocking("try userfaultfd", || Ok::<_, Error>(Ways::of_qemu())).await??;
        Ok(Self { version: format!("qemu {version}"), program, ways })
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// The driver where QEMU cannot be traced, or its page tables not be read: memory then cannot be read lazily.
    pub(crate) fn untraced(self, why: String) -> Self {
        Self { ways: self.ways.unserved(why), ..self }
    }

    /// Whether its start is traced, for restores that are lazy.
    pub(crate) fn is_traced(&self) -> bool {
        self.ways.lazy.is_ok()
    }

    async fn start(
        &self,
        shape: &MachineShape,
        parts: Parts,
        memory: GuestMemory,
        start: Launching,
    ) -> Result<(QemuMachine, Option<Userfaultfds>)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(at_start)?;
        let mut inherited = vec![
            (memory.fd().try_clone_to_owned().map_err(at_start)?, args::MEMORY_FD),
            (parts.base.into(), args::BASE_FD),
            (parts.drive.into(), args::DRIVE_FD),
            (theirs.into(), args::QMP_FD),
        ];
        let namespaces = match parts.plug {
            Plug::Tap { tap, namespaces } => {
                inherited.push((tap.into_queue(), args::TAP_FD));
                namespaces
            }
            #[cfg(test)]
            Plug::Nothing => return Err(Error::failed("start QEMU")("the fake's network has no namespace".into())),
        };
        let (mode, lazily) = match start {
            Launching::Boot(media) => {
                inherited.push((media.kernel.into(), args::KERNEL_FD));
                inherited.push((media.initramfs.into(), args::INITRAMFS_FD));
                (Start::Boot, false)
            }
            Launching::StandBy(paging) => (Start::Incoming, paging != Paging::Eager),
        };
        let launch = Launch {
            enter: devices_for(shape.acceleration, parts.identity.clone()),
            namespaces: Some(namespaces),
            directory: "/".into(),
            program: self.program.clone(),
            arguments: args::arguments(shape, mode, wrenn_net::GUEST_MAC),
            inherited,
            identity: parts.identity,
            tracing: if lazily { Tracing::Userfaultfds } else { Tracing::None },
            is_served: lazily,
            exit_code: |_| None,
        };
        let began = Instant::now();
        let (process, uffds) = Process::spawn(launch).await.map_err(at_start)?;
        ours.set_nonblocking(true).map_err(at_start)?;
        let stream = UnixStream::from_std(ours).map_err(at_start)?;
        let mut machine = QemuMachine::new(process, memory);
        machine.connect(stream, began).await?;
        Ok((machine, uffds))
    }
}

enum Launching {
    Boot(BootMedia),
    StandBy(Paging),
}

/// A QEMU that waits for the state of another machine.
#[derive(Debug)]
struct QemuStandby {
    machine: QemuMachine,
    /// Where its memory can be served.
    uffds: Option<Userfaultfds>,
}

/// Where QEMU runs as another user, the VM's thread moves to mounts with a `/dev/kvm` that this user may open.
fn devices_for(acceleration: Acceleration, owner: Option<Identity>) -> Option<Enter> {
    match (acceleration, owner) {
        (Acceleration::Kvm, Some(owner)) => Some(Box::new(move || devices::own(devices::KVM, &owner))),
        (Acceleration::Kvm, None) | (Acceleration::Tcg, _) => None,
    }
}

fn reserve(shape: &MachineShape) -> Result<GuestMemory> {
    GuestMemory::create(memory_bytes(shape)).map_err(|e| Error::failed("reserve the guest's memory")(e.into()))
}

fn memory_bytes(shape: &MachineShape) -> usize {
    usize::try_from(shape.memory_mib).unwrap_or(usize::MAX) << 20
}

#[async_trait]
impl Vmm for Qemu {
    fn version(&self) -> &str {
        &self.version
    }

    fn ways(&self) -> Ways {
        self.ways.clone()
    }

    async fn boot(&self, shape: &MachineShape, parts: Parts, media: BootMedia) -> Result<Box<dyn Machine>> {
        let (mut machine, _) = self.start(shape, parts, reserve(shape)?, Launching::Boot(media)).await?;
        machine.watch_drive(false).await?;
        Ok(Box::new(machine))
    }

    async fn stand_by(&self, shape: &MachineShape, parts: Parts, paging: Paging) -> Result<Box<dyn Standby>> {
        let (machine, uffds) = self.start(shape, parts, reserve(shape)?, Launching::StandBy(paging)).await?;
        Ok(Box::new(QemuStandby { machine, uffds }))
    }

    fn stands_by_for_any(&self, _: Paging) -> bool {
        true
    }
}

#[async_trait]
impl Standby for QemuStandby {
    async fn restore(self: Box<Self>, from: Restore) -> Result<Box<dyn Machine>> {
        let Self { mut machine, uffds } = *self;
        let generation = from.generation.clone();
        // Who asks for everything to be compared means the drive, too. Where memory is copied, that says nothing of it.
        let tells_drive = from.tracking != Tracking::Compare || from.paging == Paging::Eager;
        match (uffds, from.shared.clone()) {
            (Some(uffds), Some(shared)) => machine.map(uffds, &shared).await?,
            (Some(uffds), None) => machine.serve(uffds, from).await?,
            (None, _) => machine.populate(&generation).await?,
        }
        machine.load_devices(&generation).await?;
        if tells_drive {
            machine.watch_drive(true).await?;
        }
        Ok(Box::new(machine))
    }

    fn has_ended(&self) -> bool {
        self.machine.has_ended()
    }

    fn stood_by(&mut self) {
        self.machine.stood_by();
    }
}

/// Arguments of a QEMU that does nothing until it is killed, for [a rehearsal](crate::vmm::rehearsal).
pub(crate) const IDLE: &[&str] = &["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S"];

fn at_start(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Host {
            problem: "QEMU could not be started with the rights that it needs".to_owned(),
            remedy: "run as root, or allow ptrace of own children and /dev/userfaultfd to this user".to_owned(),
            source: Some(source.into()),
        },
        _ => Error::failed("start QEMU")(source.into()),
    }
}
