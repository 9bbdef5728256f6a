//! One Firecracker machine.

use std::fs::{self, File};
use std::io;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::watch;
use wrenn_snapshot::{SpaceWriter, WorkingSet};

use super::config;
use crate::error::{Error, Result};
use crate::runtime::blocking;
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::firecracker::api::{Api, ApiError};
use crate::vmm::firecracker::config::{Backend, MEMORY, STATE, VmState};
use crate::vmm::firecracker::door::Door;
use crate::vmm::firecracker::jail::Cgroup;
use crate::vmm::firecracker::memory::{Leave, Served};
use crate::vmm::machine::Machine;
use crate::vmm::metadata::Metadata;
use crate::vmm::paging::{Paging, RestoreReport};
use crate::vmm::process::Process;
use crate::vmm::saved::{Saved, SavedMemory};
use wrenn_snapshot::RestoreReport as MemoryReport;

#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    pub(super) process: Process,
    pub(super) api: Option<Api>,
    pub(super) door: Door,
    pub(super) origin: Origin,
    pub(super) loaded_in: Duration,
    pub(super) leave: Option<Leave>,
    /// After the process, so that it is empty when it is removed.
    pub(super) _cgroup: Option<Cgroup>,
}

/// Where a machine's memory came from.
#[derive(Debug)]
pub(super) enum Origin {
    /// The guest made all of it.
    Booted,
    Served(Served),
    /// It was copied, in this time.
    Copied(Duration),
    /// It is a file that others map too.
    Mapped,
}

impl FirecrackerMachine {
    pub(super) async fn connect(&mut self) -> Result<()> {
        const WHAT: &str = "start Firecracker";
        let mut exited = self.process.exited();
        let socket = self.door.path(config::API_SOCKET);
        let connected = tokio::select! {
            connected = Api::connect(&socket, START_TIMEOUT) => Some(connected),
            _ended = exited.wait_for(Option::is_some) => None,
        };
        match connected {
            Some(Ok(api)) => self.api = Some(api),
            Some(Err(error)) => return Err(self.explain(WHAT, error).await),
            None => return Err(self.ended(WHAT)),
        }
        Ok(())
    }

    /// Loads the device state that is in the room, and makes place for the next.
    pub(super) async fn load(&mut self, memory: Backend) -> Result<()> {
        const WHAT: &str = "restore the machine";
        let began = Instant::now();
        self.put(WHAT, "/snapshot/load", &config::load(memory), SNAPSHOT_TIMEOUT).await?;
        self.loaded_in = began.elapsed();
        self.door.remove(STATE).map_err(|e| Error::failed(WHAT)(e.into()))
    }

    pub(super) async fn put(&mut self, what: &'static str, path: &str, body: &Value, within: Duration) -> Result<()> {
        let result = self.api(what)?.put(path, body, within).await;
        self.check(what, result).await
    }

    async fn set_state(&mut self, what: &'static str, state: VmState) -> Result<()> {
        let result = self.api(what)?.patch("/vm", &state, ANSWER_TIMEOUT).await;
        self.check(what, result).await
    }

    fn api(&mut self, what: &'static str) -> Result<&mut Api> {
        self.api.as_mut().ok_or_else(|| Error::failed(what)("Firecracker's API is gone".into()))
    }

    async fn check(&mut self, what: &'static str, result: Result<(), ApiError>) -> Result<()> {
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(what, error).await),
        }
    }

    /// An API that closes means that Firecracker is ending: its exit code is the better error. One that hangs will not
    /// answer anything else either, so its machine is ended.
    async fn explain(&mut self, what: &'static str, error: ApiError) -> Error {
        match error {
            ApiError::Closed(_) => {
                let mut exited = self.process.exited();
                // Without an exit the text says so.
                let _ = tokio::time::timeout(Duration::from_secs(2), exited.wait_for(Option::is_some)).await;
                self.ended(what)
            }
            ApiError::TimedOut { .. } | ApiError::NotUp { .. } => {
                self.kill().await;
                Error::failed(what)(format!("{error}, and was killed\n{}", self.process.console().tail(8)).into())
            }
            error => Error::failed(what)(error.into()),
        }
    }

    fn ended(&self, what: &'static str) -> Error {
        let exit = self.process.exited().borrow().as_ref().map_or_else(|| "it closed its API".into(), Exit::to_string);
        Error::VmEnded { during: what, exit, console: self.process.console().tail(8) }
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    async fn describe(&mut self, guest: &Metadata) -> Result<()> {
        self.put("describe the guest", config::METADATA, &config::metadata(guest), ANSWER_TIMEOUT).await
    }

    async fn resume(&mut self) -> Result<()> {
        self.set_state("let the guest run", VmState::Resumed).await
    }

    async fn stop(&mut self) -> Result<()> {
        self.set_state("stop the guest", VmState::Paused).await
    }

    /// Firecracker tells what was written once it is stopped, and to nobody before.
    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter> {
        Ok(memory)
    }

    async fn save(&mut self, into: SpaceWriter) -> Result<Saved> {
        const WHAT: &str = "save the machine";
        self.put(WHAT, "/snapshot/create", &config::create(), SNAPSHOT_TIMEOUT).await?;
        let (diff, state) = (self.door.path(MEMORY), self.door.path(STATE));
        let read = move || {
            let state = fs::read(state)?;
            Ok::<_, io::Error>((File::open(diff)?, state))
        };
        let (diff, state) = blocking(WHAT, read).await?.map_err(|e| Error::failed(WHAT)(e.into()))?;
        Ok(Saved { memory: SavedMemory::Copied { diff, into }, state })
    }

    /// Until then the file stays, and the next diff adds to it what is written meanwhile: Firecracker forgets what it has
    /// told once.
    fn saved(&mut self) {
        if let Err(error) = self.door.remove(MEMORY) {
            tracing::warn!(%error, "the next snapshot will store some memory again");
        }
    }

    fn restore_report(&self) -> Option<RestoreReport> {
        let (paging, populated_in, memory) = match &self.origin {
            Origin::Booted => return None,
            Origin::Served(served) => (served.paging, Duration::ZERO, served.counters.report()),
            Origin::Copied(took) => (Paging::Eager, *took, MemoryReport::default()),
            Origin::Mapped => (Paging::Mapped, Duration::ZERO, MemoryReport::default()),
        };
        Some(RestoreReport { paging, populated_in, loaded_in: self.loaded_in, memory })
    }

    fn working_set(&self) -> Option<WorkingSet> {
        match &self.origin {
            Origin::Served(served) => Some(served.touched.working_set()),
            Origin::Booted | Origin::Copied(_) | Origin::Mapped => None,
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
        if let Some(leave) = &self.leave {
            leave.now();
        }
        self.process.kill().await;
    }
}

/// It takes 10 ms, and 40 with a jail; the rest is for a machine under load.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Stopping and going on take milliseconds.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// For memory that is written to, or read from, a file in memory: some seconds for the largest guests.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(180);
