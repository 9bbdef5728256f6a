//! One QEMU machine.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::watch;
use wrenn_snapshot::{Generation, MemoryFile, Space, SpaceWriter, WorkingSet};

use crate::error::{Error, Result};
use crate::patience::patient;
use crate::runtime::blocking;
use crate::vmm::console::{Console, escape_controls};
use crate::vmm::exit::Exit;
use crate::vmm::launch::Userfaultfds;
use crate::vmm::machine::Machine;
use crate::vmm::memory::{GuestMemory, SharedMemory};
use crate::vmm::origin::Origin;
use crate::vmm::paging::RestoreReport;
use crate::vmm::parts::Restore;
use crate::vmm::phases::{RestorePhases, SavePhases};
use crate::vmm::process::Process;
use crate::vmm::qemu::cloned::ClonedMemory;
use crate::vmm::qemu::drive::DriveLog;
use crate::vmm::qemu::lazy::{Found, LazyMemory, Written, file_of, save_memory};
use crate::vmm::qemu::qmp::{Qmp, QmpError};
use crate::vmm::saved::{Begun, STATE_BLOB, Saved};
use crate::vmm::tracking::Tracking;

#[derive(Debug)]
pub(super) struct QemuMachine {
    process: Process,
    memory: Memory,
    qmp: Option<Qmp>,
    drive: DriveLog,
    origin: Origin,
    /// How the pages are found that the guest wrote, where a page server provides the memory.
    found: Option<Found>,
    tracking: Tracking,
    restored: RestorePhases,
    saved: SavePhases,
}

/// What the machine has mapped.
#[derive(Debug)]
enum Memory {
    Own(Arc<GuestMemory>),
    /// What it shares with other clones, and what it wrote to that.
    Cloned(MemoryFile),
}

impl Memory {
    fn own(&self) -> Result<&Arc<GuestMemory>> {
        match self {
            Self::Own(memory) => Ok(memory),
            Self::Cloned(_) => Err(Error::failed("find the guest's memory")("it is a clone's".into())),
        }
    }

    fn content(&self) -> Result<MemoryFile> {
        match self {
            Self::Own(memory) => Ok(MemoryFile::shared(file_of(memory)?)?),
            Self::Cloned(memory) => Ok(memory.clone()),
        }
    }
}

impl QemuMachine {
    pub(super) fn new(process: Process, memory: GuestMemory) -> Self {
        Self {
            process,
            memory: Memory::Own(Arc::new(memory)),
            qmp: None,
            drive: DriveLog::default(),
            origin: Origin::Booted,
            found: None,
            tracking: Tracking::Compare,
            restored: RestorePhases::default(),
            saved: SavePhases::default(),
        }
    }

    /// Waits until QEMU, which was started at `began`, answers.
    pub(super) async fn connect(&mut self, monitor: UnixStream, began: Instant) -> Result<()> {
        match Qmp::connect(monitor, patient(STARTUP_TIMEOUT)).await {
            Ok(qmp) => self.qmp = Some(qmp),
            Err(error) => return Err(self.explain("start QEMU", error).await),
        }
        self.execute("start QEMU", "migrate-set-capabilities", capabilities()).await?;
        self.restored.spawn = began.elapsed();
        Ok(())
    }

    /// Notes that QEMU was started before anybody asked for it.
    pub(super) fn stood_by(&mut self) {
        self.restored.spawn = Duration::ZERO;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Has QEMU note what the guest writes to its drive. `is_parents` says that a generation has what is on it now.
    pub(super) async fn watch_drive(&mut self, is_parents: bool) -> Result<()> {
        const WHAT: &str = "watch the drive";
        let began = self.drive.begin(monitor(&mut self.qmp, WHAT)?, is_parents).await;
        self.told(WHAT, began).await
    }

    /// Provides the machine with a generation's memory.
    pub(super) async fn serve(&mut self, uffds: Userfaultfds, from: Restore) -> Result<()> {
        let began = Instant::now();
        let tracking = from.tracking;
        let LazyMemory { found, served, work } =
            LazyMemory::arm(&self.process, uffds, self.memory.own()?, from).await?;
        self.process.attend(work);
        self.origin = Origin::Served(served);
        self.found = Some(found);
        self.tracking = tracking;
        self.restored.populate = began.elapsed();
        Ok(())
    }

    /// Has the machine map a generation's memory, as its other clones do.
    ///
    /// # Errors
    /// The memory is not of the machine's size.
    pub(super) async fn map(&mut self, uffds: Userfaultfds, shared: &SharedMemory) -> Result<()> {
        const WHAT: &str = "map the memory of all clones";
        let began = Instant::now();
        let memory = Arc::clone(self.memory.own()?);
        if shared.len_bytes() != memory.len_bytes() as u64 {
            return Err(Error::failed(WHAT)("it is not of the machine's size".into()));
        }
        let given = monitor(&mut self.qmp, WHAT)?.give_fd(SHARED_FD_NAME, shared.fd()).await;
        self.told(WHAT, given).await?;
        let shared = shared.fd().try_clone_to_owned().map_err(|e| Error::failed(WHAT)(e.into()))?;
        let ClonedMemory { found, memory } = ClonedMemory::map(&mut self.process, uffds, &memory, shared).await?;
        self.execute(WHAT, "closefd", json!({ "fdname": SHARED_FD_NAME })).await?;
        self.origin = Origin::Mapped;
        self.memory = Memory::Cloned(memory);
        self.found = Some(found);
        self.tracking = Tracking::Async;
        self.restored.populate = began.elapsed();
        Ok(())
    }

    /// Copies all of a generation's memory into the machine's.
    pub(super) async fn populate(&mut self, from: &Generation) -> Result<()> {
        const WHAT: &str = "copy the guest's memory";
        let began = Instant::now();
        let (from, memory) = (from.clone(), Arc::clone(self.memory.own()?));
        let copy = move || {
            // What the VMM wrote while it started is not the guest's.
            memory.clear().map_err(|e| Error::failed(WHAT)(e.into()))?;
            let file = file_of(&memory)?;
            Ok::<_, Error>(from.reader(Space::Memory)?.copy_over_zeros(&file, Path::new("the guest's memory"))?)
        };
        blocking(WHAT, copy).await??;
        self.origin = Origin::Copied;
        self.restored.populate = began.elapsed();
        Ok(())
    }

    /// Loads a generation's device state. The state refers to rings in guest memory, so the memory is provided before.
    pub(super) async fn load_devices(&mut self, from: &Generation) -> Result<()> {
        const WHAT: &str = "restore the device state";
        let began = Instant::now();
        let from = from.clone();
        let read = move || {
            let state = from.blob(STATE_BLOB)?;
            let file = state_file(WHAT)?;
            std::io::Write::write_all(&mut &file, &state).map_err(|e| Error::failed(WHAT)(e.into()))?;
            rewind(&file, WHAT)?;
            Ok::<_, Error>(file)
        };
        let file = blocking(WHAT, read).await??;
        self.give(&file, WHAT).await?;
        let uri = json!({ "uri": format!("fd:{STATE_FD_NAME}") });
        self.execute(WHAT, "migrate-incoming", uri).await?;
        self.migrated(WHAT).await?;
        self.restored.load = began.elapsed();
        Ok(())
    }

    pub(super) async fn execute(&mut self, what: &'static str, command: &str, arguments: Value) -> Result<Value> {
        let answer = monitor(&mut self.qmp, what)?.execute(command, arguments).await;
        self.told(what, answer).await
    }

    async fn give(&mut self, file: &File, what: &'static str) -> Result<()> {
        let given = monitor(&mut self.qmp, what)?.give_fd(STATE_FD_NAME, file.as_fd()).await;
        self.told(what, given).await
    }

    /// What the monitor answered, with a better error.
    async fn told<T>(&mut self, what: &'static str, answer: std::result::Result<T, QmpError>) -> Result<T> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(what, error).await),
        }
    }

    /// Waits for the end of a migration, in either direction.
    async fn migrated(&mut self, what: &'static str) -> Result<()> {
        let started = Instant::now();
        loop {
            let progress = self.execute(what, "query-migrate", Value::Null).await?;
            match progress["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    let reason = escape_controls(progress["error-desc"].as_str().unwrap_or("QEMU gives no reason"));
                    return Err(Error::failed(what)(format!("{reason}\n{}", self.process.console().tail(5)).into()));
                }
                _ if started.elapsed() > patient(MIGRATION_TIMEOUT) => {
                    let why = format!("QEMU's migration was not done within {MIGRATION_TIMEOUT:?}");
                    return Err(self.process.give_up(what, why).await);
                }
                _ => tokio::time::sleep(MIGRATION_POLL).await,
            }
        }
    }

    /// The error of a command that failed. Where the monitor closed, QEMU is ending, and what QEMU printed is the
    /// better error. Where the monitor was late or broke its protocol, no later answer can be relied on, so the machine
    /// is ended.
    async fn explain(&mut self, what: &'static str, error: QmpError) -> Error {
        match error {
            QmpError::Refused { .. } => Error::failed(what)(error.into()),
            QmpError::Closed { .. } => self.process.ended(what, "it closed its monitor").await,
            error => self.process.give_up(what, error.to_string()).await,
        }
    }

    /// Saves the memory, which does not need the VMM.
    #[cfg(test)]
    pub(super) fn save_memory_of_test(&self, into: SpaceWriter) -> SpaceWriter {
        let found = self.found.clone().expect("its memory is served");
        let written = Written::Found(found, self.memory.content().unwrap());
        save_memory(into, written).unwrap().finish().unwrap()
    }

    #[cfg(test)]
    pub(super) fn be_impatient(&mut self, patience: Duration) {
        self.qmp.as_mut().expect("a started machine has its monitor").be_impatient(patience);
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn resume(&mut self) -> Result<()> {
        let began = Instant::now();
        self.execute("let the guest run", "cont", Value::Null).await?;
        self.restored.has_run(began.elapsed());
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        const WHAT: &str = "stop the guest";
        let prepared = self.drive.prepare(monitor(&mut self.qmp, WHAT)?).await;
        self.told(WHAT, prepared).await?;
        let began = Instant::now();
        self.execute(WHAT, "stop", Value::Null).await?;
        self.saved = SavePhases { stop: began.elapsed(), ..SavePhases::default() };
        Ok(())
    }

    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter> {
        let Some(Found::Tracked(tracker)) = &self.found else { return Ok(memory) };
        let (tracker, file) = (Arc::clone(tracker), self.memory.content()?);
        blocking("copy the running guest's memory", move || super::lazy::write_ahead(memory, &file, &tracker)).await?
    }

    async fn save(&mut self, memory: SpaceWriter) -> Result<Saved> {
        const WHAT: &str = "save the device state";
        let state = state_file(WHAT)?;
        let began = Instant::now();
        if !self.drive.is_complete() {
            let started_over = self.drive.start_over(monitor(&mut self.qmp, WHAT)?).await;
            self.told(WHAT, started_over).await?;
        }
        self.give(&state, WHAT).await?;
        self.execute(WHAT, "migrate", json!({ "uri": format!("fd:{STATE_FD_NAME}") })).await?;
        let written = match (&self.origin, &self.found) {
            (Origin::Booted, _) => Written::All(Arc::clone(self.memory.own()?)),
            (_, Some(found)) => Written::Found(found.clone(), self.memory.content()?),
            (_, None) => Written::Unknown(Arc::clone(self.memory.own()?)),
        };
        // QEMU saves the devices at the same time, and does not write to guest memory while it does.
        let copied = async {
            let saved = blocking("save the memory", move || save_memory(memory, written)).await;
            (saved, began.elapsed())
        };
        let ((copied, memory_took), migrated) = tokio::join!(copied, self.migrated(WHAT));
        migrated?;
        let state = read_state(&state).map_err(|e| Error::failed(WHAT)(e.into()))?;
        self.saved.memory = memory_took;
        self.saved.state = began.elapsed();
        Ok(Saved { memory: copied??, state })
    }

    fn knows_drive(&self) -> bool {
        self.drive.is_complete()
    }

    async fn save_drive(&mut self, drive: SpaceWriter) -> Result<Begun> {
        const WHAT: &str = "save the drive";
        let begun = self.drive.save(monitor(&mut self.qmp, WHAT)?, drive).await;
        self.told(WHAT, begun).await
    }

    async fn drive_saved(&mut self) -> Result<()> {
        const WHAT: &str = "copy the drive";
        let ended = self.drive.saved(monitor(&mut self.qmp, WHAT)?).await;
        let ended = self.told(WHAT, ended).await?;
        ended.map_err(|reason| Error::failed(WHAT)(reason.into()))
    }

    fn saved(&mut self) {
        self.drive.published();
        if let Some(found) = &self.found {
            found.commit();
        }
    }

    fn restore_report(&self) -> Option<RestoreReport> {
        self.origin.report(self.restored, self.tracking)
    }

    fn tracking(&self) -> Tracking {
        self.tracking
    }

    fn save_phases(&self) -> SavePhases {
        self.saved
    }

    fn working_set(&self) -> Option<WorkingSet> {
        self.origin.working_set()
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.process.exited()
    }

    fn console(&self) -> &Console {
        self.process.console()
    }

    fn pid(&self) -> u32 {
        self.process.pid().as_raw().cast_unsigned()
    }

    async fn kill(&mut self) {
        self.process.kill().await;
    }
}

fn monitor<'a>(qmp: &'a mut Option<Qmp>, what: &'static str) -> Result<&'a mut Qmp> {
    qmp.as_mut().ok_or_else(|| Error::failed(what)("QEMU's monitor is gone".into()))
}

const STATE_FD_NAME: &str = "state";
const SHARED_FD_NAME: &str = "shared";
/// Device state is some 50 KB and takes milliseconds.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(30);
/// More than that is not the state of a microvm, and would only fill the host's memory.
const STATE_BYTES_MAX: u64 = 64 << 20;
const STATE_CHUNK_BYTES: usize = 128 << 10;
/// It takes 30 to 130 ms; the rest is for a machine under load.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(20);
const MIGRATION_POLL: Duration = Duration::from_micros(500);

/// With this capability, a migration leaves out memory that is shared with another process, which the memfd is.
fn capabilities() -> Value {
    json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] })
}

fn state_file(what: &'static str) -> Result<File> {
    let fd = memfd_create(c"wrenn-device-state", MFdFlags::MFD_CLOEXEC);
    fd.map(File::from).map_err(|e| Error::failed(what)(e.into()))
}

/// Reads what QEMU wrote. QEMU still has the file open and could change its position or length, so neither is relied
/// on.
fn read_state(file: &File) -> io::Result<Vec<u8>> {
    let mut state = Vec::new();
    loop {
        let len = state.len();
        if len as u64 > STATE_BYTES_MAX {
            return Err(io::Error::other(format!("it has more than {STATE_BYTES_MAX} bytes")));
        }
        state.resize(len + STATE_CHUNK_BYTES, 0);
        match file.read_at(&mut state[len..], len as u64) {
            Ok(0) => {
                state.truncate(len);
                return Ok(state);
            }
            Ok(read) => state.truncate(len + read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => state.truncate(len),
            Err(error) => return Err(error),
        }
    }
}

fn rewind(mut file: &File, what: &'static str) -> Result<()> {
    file.seek(SeekFrom::Start(0)).map(drop).map_err(|e| Error::failed(what)(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_whole_wherever_its_file_stands_and_only_up_to_a_limit() {
        let file = state_file("test").unwrap();
        let state: Vec<u8> = (0..=250_u8).cycle().take(300_000).collect();
        std::io::Write::write_all(&mut &file, &state).unwrap();
        assert_eq!(read_state(&file).unwrap(), state);
        // Holes: nothing is written, and all of it would be read.
        file.set_len(1 << 40).unwrap();
        assert!(read_state(&file).unwrap_err().to_string().contains("more than"));
    }
}
