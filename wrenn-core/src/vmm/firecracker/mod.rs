//! The Firecracker driver: stock, 1.16 and later.
//!
//! ```text
//!  start:    Room::enter (on the VM's thread) ─▶ [jailer ─▶] firecracker ─▶ Api::connect
//!  boot:     config::boot ─▶ InstanceStart
//!  restore:  listen ─▶ PUT /snapshot/load ─▶ hand-over ─▶ page server (on the VM's thread) ─▶ answered ─▶ PUT /mmds
//!  save:     PATCH /vm Paused ─▶ PUT /snapshot/create Diff ─▶ SpaceWriter::add_sparse
//! ```

mod api;
mod config;
mod door;
mod jail;
mod machine;
mod memory;
mod probe;
mod rehearsal;
mod room;
#[cfg(test)]
mod tests;
mod version;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use wrenn_snapshot::Space;

use crate::error::{Error, Result};
use crate::image::vmlinux;
use crate::network::slot::Plug;
use crate::program::{self, from_variable, on_path};
use crate::runtime::blocking;
use crate::vmm::driver::Confinement;
use crate::vmm::firecracker::config::{
    API_SOCKET, Backend, FLAT_MEMORY, INITRAMFS, KERNEL, MEMORY, MEMORY_SOCKET, STATE,
};
use crate::vmm::firecracker::door::Door;
use crate::vmm::firecracker::jail::{Jail, Limits};
use crate::vmm::firecracker::machine::{ANSWER_TIMEOUT, FirecrackerMachine};
use crate::vmm::firecracker::room::{BASE, Content, Devices, Room};
use crate::vmm::firecracker::version::{RELEASES, Version};
use crate::vmm::identity::Identity;
use crate::vmm::launch::{Launch, Tracing};
use crate::vmm::machine::{Machine, Standby, Vmm};
use crate::vmm::origin::Origin;
use crate::vmm::paging::Paging;
use crate::vmm::parts::{BootMedia, Parts, Restore};
use crate::vmm::phases::{RestorePhases, SavePhases};
use crate::vmm::probe::has_virtualization;
use crate::vmm::process::Process;
use crate::vmm::saved::STATE_BLOB;
use crate::vmm::shape::MachineShape;
use crate::vmm::ways::Ways;

/// The driver, bound to one binary.
#[derive(Debug)]
pub(crate) struct Firecracker {
    program: PathBuf,
    jailer: Option<PathBuf>,
    version: String,
    /// Where rooms are mounted.
    rooms: PathBuf,
}

impl Firecracker {
    /// The binary: as `named`, else by `WRENN_FIRECRACKER`, else on the `PATH`. `None` where there is none.
    pub(crate) fn program(named: Option<PathBuf>) -> Option<PathBuf> {
        named.or_else(|| from_variable("WRENN_FIRECRACKER")).or_else(|| on_path(PROGRAM))
    }

    /// Asks a binary for its version, and finds the jailer where one is wanted.
    pub(crate) async fn open(program: PathBuf, confinement: Confinement, data_dir: &Path) -> Result<Self> {
        let program = std::path::absolute(&program).map_err(Error::io("find", &program))?;
        let (version, _) = Self::version_of(&program).await?;
        let jailer = match confinement {
            Confinement::Jailer => {
                let jailer = Self::jailer_of(&program).await?.0;
                let jailed = program.clone();
                blocking("look at Firecracker's binary", move || check_jailable(&jailed)).await??;
                Some(jailer)
            }
            Confinement::User => None,
        };
        jail::sweep();
        let rooms = Room::prepare(data_dir).map_err(Error::io("prepare", data_dir))?;
        Ok(Self { program, jailer, version: format!("firecracker {version}"), rooms })
    }

    /// The version of a binary, if wrenn can drive it, and what is known to be wrong with it.
    pub(crate) async fn version_of(program: &Path) -> Result<(String, Vec<String>)> {
        let version = version_that_says(program, "Firecracker").await?;
        version.check(program)?;
        Ok((version.to_string(), version.flaws()))
    }

    /// The jailer of a Firecracker, and its version: by `WRENN_JAILER`, else beside Firecracker, else on the `PATH`.
    pub(crate) async fn jailer_of(program: &Path) -> Result<(PathBuf, String)> {
        let beside = program.with_file_name(JAILER);
        let found =
            from_variable("WRENN_JAILER").or_else(|| beside.is_file().then_some(beside)).or_else(|| on_path(JAILER));
        let jailer = found.ok_or_else(|| Error::Host {
            problem: "Firecracker's jailer is not here".to_owned(),
            remedy: "install it from the same release, or name it in WRENN_JAILER; or choose `Confinement::User`"
                .to_owned(),
            source: None,
        })?;
        let version = version_that_says(&jailer, "Jailer").await?;
        Ok((jailer, version.to_string()))
    }

    pub(crate) fn binary(&self) -> &Path {
        &self.program
    }

    /// Whether a short guest runs to its end.
    pub(crate) async fn finishes_a_guest(&self) -> io::Result<bool> {
        Ok(has_virtualization() && probe::finishes_a_guest(&self.program).await?)
    }

    /// Starts Firecracker in a room of its own.
    async fn start(&self, shape: &MachineShape, parts: Parts, starting: Starting) -> Result<FirecrackerMachine> {
        let owner = parts.identity.ok_or_else(need_root)?;
        let namespace = match parts.plug {
            Plug::Tap { tap, namespaces } => {
                tap.leave_to(owner.uid)?;
                namespaces.net
            }
            #[cfg(test)]
            Plug::Nothing => return Err(Error::failed(START)("the fake's network has no namespace".into())),
        };
        let id = jail::fresh_id();
        let place = Room::mount_point(&self.rooms);
        let inside = self.jailer.as_ref().map_or_else(|| "root".into(), |_| Jail::root(&self.program, &id));
        let room = Room {
            parent: self.rooms.clone(),
            inside: inside.clone(),
            bytes_max: (2 * u64::from(shape.memory_mib) + ROOM_FILES_MIB) << 20,
            owner: owner.clone(),
            namespace,
            mounts: starting.mounts.into_iter().chain([(BASE, parts.base)]).collect(),
            drive: parts.drive,
            contents: starting.contents,
            devices: if self.jailer.is_some() { Devices::Jailer } else { Devices::Room },
        };
        let limits = self.jailer.as_ref().and_then(|_| Limits::of(shape));
        let arguments = ["--api-sock", API_SOCKET, "--id", &id].map(str::to_owned).to_vec();
        let (program, arguments) = match &self.jailer {
            Some(jailer) => {
                let firecracker = &self.program;
                let jail =
                    Jail { firecracker, id: &id, chroot_base: &place, identity: &owner, cgroup: limits.as_ref() };
                // The jailer passes the name on by itself.
                (jailer.clone(), jail.arguments(&arguments[..2]))
            }
            None => (self.program.clone(), arguments),
        };
        let (entered, door) = tokio::sync::oneshot::channel();
        let launch = Launch {
            enter: Some(Box::new(move || {
                // The send fails where the start was given up. The room is then closed when the thread ends.
                let _ = entered.send(room.enter()?);
                Ok(())
            })),
            namespaces: None,
            directory: place.join(inside),
            program,
            arguments,
            inherited: Vec::new(),
            identity: Some(owner),
            tracing: if self.jailer.is_some() { Tracing::NextExec } else { Tracing::None },
            is_served: starting.is_served,
            exit_code,
        };
        let began = Instant::now();
        let (process, _) = Process::spawn(launch).await.map_err(|e| at_start(&self.program, e))?;
        let door: Door = door.await.map_err(|_| Error::failed(START)("its thread has ended".into()))?;
        let _cgroup = limits.map(|limits| limits.cgroup(&id));
        let mut machine = FirecrackerMachine {
            process,
            api: None,
            door: Arc::new(door),
            memory_bytes: u64::from(shape.memory_mib) << 20,
            origin: Origin::Booted,
            restored: RestorePhases::default(),
            saved: SavePhases::default(),
            leave: None,
            _cgroup,
        };
        machine.connect(began).await?;
        Ok(machine)
    }
}

/// A Firecracker that waits for a snapshot.
#[derive(Debug)]
struct FirecrackerStandby {
    machine: FirecrackerMachine,
    owner: Identity,
}

impl FirecrackerStandby {
    async fn restore_served(mut self, from: Restore) -> Result<FirecrackerMachine> {
        let machine = &mut self.machine;
        let began = Instant::now();
        let listener = machine
            .door
            .listen(MEMORY_SOCKET, self.owner.uid, self.owner.gid)
            .map_err(|e| Error::failed(LOAD)(e.into()))?;
        let watch = machine.process.pidfd().try_clone_to_owned().map_err(|e| Error::failed(LOAD)(e.into()))?;
        let (work, leave, told) = memory::attendance(listener, watch, from)?;
        machine.process.attend(work);
        machine.leave = Some(leave);
        machine.restored.populate = began.elapsed();
        // Loading touches memory before it is answered.
        machine.load(Backend::Uffd).await?;
        machine.is_served(LOAD, told).await?;
        Ok(self.machine)
    }

    async fn restore_mapped(mut self) -> Result<FirecrackerMachine> {
        self.machine.load(Backend::File(FLAT_MEMORY)).await?;
        self.machine.origin = Origin::Mapped;
        Ok(self.machine)
    }

    async fn restore_copied(self, from: Restore) -> Result<FirecrackerMachine> {
        let mut machine = self.machine;
        let began = Instant::now();
        let door = Arc::clone(&machine.door);
        let copy = move || {
            door.make(MEMORY, |file| {
                let reader = from.generation.reader(Space::Memory)?;
                reader.copy_into(file, Path::new("the guest's memory"))?;
                Ok::<_, RoomError>(())
            })
        };
        blocking(COPY, copy).await?.map_err(|error| error.during(COPY))?;
        machine.restored.populate = began.elapsed();
        machine.load(Backend::File(MEMORY)).await?;
        // Firecracker has mapped the file. A diff must not find its name, or it would add to this file.
        machine.door.remove(MEMORY).map_err(|e| Error::failed(LOAD)(e.into()))?;
        machine.origin = Origin::Copied;
        Ok(machine)
    }
}

#[async_trait]
impl Standby for FirecrackerStandby {
    async fn restore(self: Box<Self>, from: Restore) -> Result<Box<dyn Machine>> {
        let (door, generation) = (Arc::clone(&self.machine.door), from.generation.clone());
        let state = move || {
            door.make(STATE, |mut file| {
                let state = generation.blob(STATE_BLOB)?;
                Ok::<_, RoomError>(io::Write::write_all(&mut file, &state)?)
            })
        };
        blocking(LOAD, state).await?.map_err(|error| error.during(LOAD))?;
        Ok(Box::new(match from.paging {
            Paging::Lazy | Paging::Populate | Paging::OnDemand => self.restore_served(from).await?,
            Paging::Eager => self.restore_copied(from).await?,
            Paging::Mapped => self.restore_mapped().await?,
        }))
    }

    fn has_ended(&self) -> bool {
        self.machine.process.has_ended()
    }

    fn stood_by(&mut self) {
        self.machine.restored.spawn = Duration::ZERO;
    }
}

/// Why a generation's content is not in a room.
enum RoomError {
    Room(io::Error),
    Generation(wrenn_snapshot::Error),
}

impl RoomError {
    fn during(self, what: &'static str) -> Error {
        match self {
            Self::Room(error) => Error::failed(what)(error.into()),
            Self::Generation(error) => error.into(),
        }
    }
}

impl From<io::Error> for RoomError {
    fn from(error: io::Error) -> Self {
        Self::Room(error)
    }
}

impl From<wrenn_snapshot::Error> for RoomError {
    fn from(error: wrenn_snapshot::Error) -> Self {
        Self::Generation(error)
    }
}

/// What a Firecracker is started for.
struct Starting {
    contents: Vec<Content>,
    mounts: Vec<(&'static str, File)>,
    is_served: bool,
}

#[async_trait]
impl Vmm for Firecracker {
    fn version(&self) -> &str {
        &self.version
    }

    fn ways(&self) -> Ways {
        Ways::of_firecracker()
    }

    async fn boot(&self, shape: &MachineShape, parts: Parts, media: BootMedia) -> Result<Box<dyn Machine>> {
        let BootMedia { mut kernel, initramfs } = media;
        let unpack = move || {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut kernel, &mut bytes)?;
            vmlinux::unpack(bytes)
        };
        let kernel = blocking(START, unpack).await?.map_err(|e| Error::failed("unpack the kernel")(e.into()))?;
        let contents = vec![Content::File(KERNEL, kernel), Content::Copy(INITRAMFS, initramfs)];
        let mut machine = self.start(shape, parts, Starting { contents, mounts: Vec::new(), is_served: false }).await?;
        for (path, body) in config::boot(shape) {
            machine.put("boot the guest", path, &body, ANSWER_TIMEOUT).await?;
        }
        Ok(Box::new(machine))
    }

    async fn stand_by(&self, shape: &MachineShape, mut parts: Parts, paging: Paging) -> Result<Box<dyn Standby>> {
        let owner = parts.identity.clone().ok_or_else(need_root)?;
        let mounts = match (paging, parts.flat.take()) {
            (Paging::Mapped, Some(flat)) => vec![(FLAT_MEMORY, flat)],
            (Paging::Mapped, None) => return Err(Error::failed(LOAD)("the file of its memory is not there".into())),
            _ => Vec::new(),
        };
        let is_served = matches!(paging, Paging::Lazy | Paging::Populate | Paging::OnDemand);
        let machine = self.start(shape, parts, Starting { contents: Vec::new(), mounts, is_served }).await?;
        Ok(Box::new(FirecrackerStandby { machine, owner }))
    }

    fn stands_by_for_any(&self, paging: Paging) -> bool {
        // A room's files are mounted before Firecracker runs.
        paging != Paging::Mapped
    }
}

/// What Firecracker's exit codes mean, where they are its own (`FcExitCode` in src/vmm/src/lib.rs).
fn exit_code(code: i32) -> Option<&'static str> {
    Some(match code {
        0 => "the guest ended itself",
        1 => "Firecracker met an error; the console has its words",
        2 => "Firecracker met an error that it thought impossible",
        148 => "Firecracker made a system call that its filter forbids",
        149 => "SIGBUS in Firecracker",
        150 => "SIGSEGV in Firecracker",
        151 => "Firecracker wrote a file beyond its size limit",
        152 => "Firecracker was given a bad configuration",
        153 => "Firecracker was given bad arguments",
        154 => "Firecracker ran past its limit of processor time",
        155 => "SIGPIPE in Firecracker",
        156 => "SIGHUP in Firecracker",
        157 => "SIGILL in Firecracker",
        _ => return None,
    })
}

/// Whether a binary runs where there are no libraries. Blocks for some milliseconds.
fn check_jailable(program: &Path) -> Result<()> {
    let elf = std::fs::read(program).map_err(Error::io("read", program))?;
    // What is no program of that kind, such as a script, says by itself what it lacks.
    if program::is_dynamic(&elf).unwrap_or(false) {
        return Err(Error::Host {
            problem: format!("{} needs libraries, and a jail has none", program.display()),
            remedy: format!(
                "use a released binary, which is linked statically ({RELEASES}); or choose `Confinement::User`"
            ),
            source: None,
        });
    }
    Ok(())
}

async fn version_that_says(program: &Path, name: &'static str) -> Result<Version> {
    let output = program::version(program).await.map_err(|e| not_firecracker(program, name, Some(e)))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text, name).ok_or_else(|| not_firecracker(program, name, None))
}

fn not_firecracker(program: &Path, name: &str, source: Option<io::Error>) -> Error {
    let variable = if name == "Jailer" { "WRENN_JAILER" } else { "WRENN_FIRECRACKER" };
    Error::Host {
        problem: format!("{} is not here, or is not {name}", program.display()),
        remedy: format!("name a released binary in {variable}, or put it on the PATH; releases are at {RELEASES}"),
        source: source.map(Into::into),
    }
}

fn need_root() -> Error {
    Error::Host {
        problem: "Firecracker is started in a mount namespace of its own, as a user of its own".to_owned(),
        remedy: "run as root".to_owned(),
        source: None,
    }
}

fn at_start(program: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::PermissionDenied => Error::Host {
            problem: "Firecracker could not be started with the rights that it needs".to_owned(),
            remedy: format!(
                "run as root, with CAP_SYS_ADMIN, CAP_SETUID, CAP_SETGID, CAP_MKNOD, CAP_CHOWN, CAP_FOWNER and \
                 CAP_DAC_OVERRIDE, and see to it that every user may execute {}",
                program.display()
            ),
            source: Some(source.into()),
        },
        _ => Error::failed(START)(source.into()),
    }
}

pub(crate) const PROGRAM: &str = "firecracker";
const JAILER: &str = "jailer";
const START: &str = "start Firecracker";
const COPY: &str = "copy the guest's memory";
const LOAD: &str = "restore the machine";
/// The kernel, the initramfs, the device state, and the jailer's copy of the binary.
const ROOM_FILES_MIB: u64 = 256;
