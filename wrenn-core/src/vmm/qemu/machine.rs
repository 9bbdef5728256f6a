//! One QEMU machine.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};
use tokio::sync::watch;
use wrenn_snapshot::{Generation, SpaceWriter, WorkingSet};

use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::machine::Machine;
use crate::vmm::memory::GuestMemory;
use crate::vmm::paging::{Paging, RestoreReport};
use crate::vmm::parts::Restore;
use crate::vmm::process::{Process, Userfaultfds};
use crate::vmm::qemu::lazy::{LazyMemory, Written, save_memory};
use crate::vmm::qemu::qmp::{Qmp, QmpError};
use crate::vmm::saved::{STATE_BLOB, Saved};
use wrenn_snapshot::RestoreReport as MemoryReport;

#[derive(Debug)]
pub(super) struct QemuMachine {
    process: Process,
    memory: Arc<GuestMemory>,
    qmp: Option<Qmp>,
    origin: Origin,
    loaded_in: Duration,
}

/// Where a machine's memory came from, and with it how to find what was written since.
#[derive(Debug)]
enum Origin {
    /// The guest made all of it.
    Booted,
    Lazy(LazyMemory),
    /// It was copied, in this time.
    Copied(Duration),
}

impl QemuMachine {
    pub(super) fn new(process: Process, memory: GuestMemory) -> Self {
        Self { process, memory: Arc::new(memory), qmp: None, origin: Origin::Booted, loaded_in: Duration::ZERO }
    }

    pub(super) async fn set_qmp(&mut self, qmp: Result<Qmp, QmpError>) -> Result<()> {
        match qmp {
            Ok(qmp) => self.qmp = Some(qmp),
            Err(error) => return Err(self.explain("start QEMU", error).await),
        }
        self.execute("start QEMU", "migrate-set-capabilities", capabilities()).await?;
        Ok(())
    }

    /// Puts a generation's memory behind the machine's.
    pub(super) async fn serve(&mut self, uffds: Userfaultfds, from: Restore) -> Result<()> {
        let (lazy, work) = LazyMemory::arm(&self.process, uffds, &self.memory, from).await?;
        self.process.attend(work);
        self.origin = Origin::Lazy(lazy);
        Ok(())
    }

    /// The machine's memory is a copy of a generation's.
    pub(super) fn is_populated(&mut self, took: Duration) {
        self.origin = Origin::Copied(took);
    }

    /// Loads a generation's device state. It refers to rings in guest memory, so the memory is there before.
    pub(super) async fn load_devices(&mut self, from: &Generation) -> Result<()> {
        let state = from.blob(STATE_BLOB).map_err(Error::from)?;
        let file = state_file("restore the device state")?;
        std::io::Write::write_all(&mut &file, &state)
            .map_err(|e| Error::failed("restore the device state")(e.into()))?;
        rewind(&file, "restore the device state")?;
        self.give(&file, "restore the device state").await?;
        let uri = json!({ "uri": format!("fd:{STATE_FD_NAME}") });
        let began = Instant::now();
        self.execute("restore the device state", "migrate-incoming", uri).await?;
        self.migrated("restore the device state").await?;
        self.loaded_in = began.elapsed();
        Ok(())
    }

    fn memory_file(&self) -> Result<File> {
        let file = self.memory.fd().try_clone_to_owned().map(File::from);
        file.map_err(|e| Error::failed("read the guest's memory")(e.into()))
    }

    async fn execute(&mut self, what: &'static str, command: &str, arguments: Value) -> Result<Value> {
        let qmp = self.qmp.as_mut().ok_or_else(|| Error::failed(what)("QEMU's monitor is gone".into()))?;
        match qmp.execute(command, arguments).await {
            Ok(value) => Ok(value),
            Err(error) => Err(self.explain(what, error).await),
        }
    }

    async fn give(&mut self, file: &File, what: &'static str) -> Result<()> {
        let qmp = self.qmp.as_mut().ok_or_else(|| Error::failed(what)("QEMU's monitor is gone".into()))?;
        match qmp.give_fd(STATE_FD_NAME, file.as_fd()).await {
            Ok(()) => Ok(()),
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
                    let reason = progress["error-desc"].as_str().unwrap_or("QEMU gives no reason").to_owned();
                    return Err(Error::failed(what)(format!("{reason}\n{}", self.process.console().tail(5)).into()));
                }
                _ if started.elapsed() > MIGRATION_TIMEOUT => {
                    return Err(Error::failed(what)(format!("QEMU took more than {MIGRATION_TIMEOUT:?}").into()));
                }
                _ => tokio::time::sleep(MIGRATION_POLL).await,
            }
        }
    }

    /// A monitor that closes means that QEMU is ending: its own words are the better error.
    async fn explain(&self, what: &'static str, error: QmpError) -> Error {
        if !matches!(error, QmpError::Closed { .. }) {
            return Error::failed(what)(error.into());
        }
        let mut exited = self.process.exited();
        let exit = tokio::time::timeout(Duration::from_secs(2), exited.wait_for(Option::is_some)).await;
        let exit = match exit {
            Ok(Ok(exit)) => exit.as_ref().map_or_else(String::new, ToString::to_string),
            _ => "it closed its monitor".to_owned(),
        };
        Error::VmEnded { during: what, exit, console: self.process.console().tail(8) }
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn resume(&mut self) -> Result<()> {
        self.execute("let the guest run", "cont", Value::Null).await.map(drop)
    }

    async fn stop(&mut self) -> Result<()> {
        self.execute("stop the guest", "stop", Value::Null).await.map(drop)
    }

    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter> {
        let Origin::Lazy(lazy) = &self.origin else { return Ok(memory) };
        let (tracker, file) = (lazy.tracker(), self.memory_file()?);
        blocking("copy the running guest's memory", move || super::lazy::write_ahead(memory, &file, &tracker)).await?
    }

    async fn save(&mut self, memory: SpaceWriter) -> Result<Saved> {
        const WHAT: &str = "save the device state";
        let mut state = state_file(WHAT)?;
        self.give(&state, WHAT).await?;
        self.execute(WHAT, "migrate", json!({ "uri": format!("fd:{STATE_FD_NAME}") })).await?;
        let written = match &self.origin {
            Origin::Booted => Written::All,
            Origin::Lazy(lazy) => Written::Tracked(lazy.tracker()),
            Origin::Copied(_) => Written::Unknown,
        };
        // QEMU saves the devices meanwhile. That writes nothing to memory: a migration has sent all of it by then.
        let guest_memory = Arc::clone(&self.memory);
        let copied = blocking("save the memory", move || save_memory(memory, &guest_memory, written));
        let (copied, migrated) = tokio::join!(copied, self.migrated(WHAT));
        migrated?;
        rewind(&state, WHAT)?;
        let mut bytes = Vec::new();
        state.read_to_end(&mut bytes).map_err(|e| Error::failed(WHAT)(e.into()))?;
        Ok(Saved { memory: copied??, state: bytes })
    }

    fn saved(&mut self) {
        if let Origin::Lazy(lazy) = &self.origin {
            lazy.commit();
        }
    }

    fn restore_report(&self) -> Option<RestoreReport> {
        let (paging, populated_in, memory) = match &self.origin {
            Origin::Booted => return None,
            Origin::Lazy(lazy) => (lazy.paging(), Duration::ZERO, lazy.report()),
            Origin::Copied(took) => (Paging::Eager, *took, MemoryReport::default()),
        };
        Some(RestoreReport { paging, populated_in, loaded_in: self.loaded_in, memory })
    }

    fn working_set(&self) -> Option<WorkingSet> {
        match &self.origin {
            Origin::Lazy(lazy) => Some(lazy.working_set()),
            Origin::Booted | Origin::Copied(_) => None,
        }
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

const STATE_FD_NAME: &str = "state";
/// Device state is some 50 KB and takes milliseconds.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(30);
const MIGRATION_POLL: Duration = Duration::from_micros(500);

/// With it a migration stream leaves out memory that is shared with another process: the memfd.
fn capabilities() -> Value {
    json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] })
}

fn state_file(what: &'static str) -> Result<File> {
    let fd = memfd_create(c"wrenn-device-state", MFdFlags::MFD_CLOEXEC);
    fd.map(File::from).map_err(|e| Error::failed(what)(e.into()))
}

fn rewind(mut file: &File, what: &'static str) -> Result<()> {
    file.seek(SeekFrom::Start(0)).map(drop).map_err(|e| Error::failed(what)(e.into()))
}
