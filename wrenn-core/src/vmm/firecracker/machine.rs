//! One Firecracker machine.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use wrenn_snapshot::{SpaceWriter, WorkingSet};

use super::config;
use crate::error::{Error, Result};
use crate::patience::patient;
use crate::runtime::blocking;
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::firecracker::api::{Api, ApiError};
use crate::vmm::firecracker::config::{Backend, MEMORY, STATE, VmState};
use crate::vmm::firecracker::door::Door;
use crate::vmm::firecracker::jail::Cgroup;
use crate::vmm::firecracker::memory::Leave;
use crate::vmm::machine::Machine;
use crate::vmm::metadata::Metadata;
use crate::vmm::origin::{Origin, Served};
use crate::vmm::paging::RestoreReport;
use crate::vmm::phases::{RestorePhases, SavePhases};
use crate::vmm::process::Process;
use crate::vmm::saved::{Saved, SavedMemory};
use crate::vmm::tracking::Tracking;

#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    pub(super) process: Process,
    pub(super) api: Option<Api>,
    pub(super) door: Arc<Door>,
    pub(super) memory_bytes: u64,
    pub(super) origin: Origin,
    pub(super) restored: RestorePhases,
    pub(super) saved: SavePhases,
    pub(super) leave: Option<Leave>,
    /// Declared after the process, so that the cgroup is empty when it is dropped and removed.
    pub(super) _cgroup: Option<Cgroup>,
}

impl FirecrackerMachine {
    /// Waits until Firecracker, which was started at `began`, answers.
    pub(super) async fn connect(&mut self, began: Instant) -> Result<()> {
        const WHAT: &str = "start Firecracker";
        let mut exited = self.process.exited();
        let door = Arc::clone(&self.door);
        let connected = tokio::select! {
            connected = Api::connect(|| door.socket(config::API_SOCKET), patient(START_TIMEOUT)) => Some(connected),
            _ended = exited.wait_for(Option::is_some) => None,
        };
        match connected {
            Some(Ok(api)) => self.api = Some(api),
            Some(Err(error)) => return Err(self.explain(WHAT, error).await),
            None => return Err(self.process.ended(WHAT, NO_API).await),
        }
        self.restored.spawn = began.elapsed();
        Ok(())
    }

    /// Waits for the VM's thread to report that it has the memory. Firecracker hands the memory over before it answers
    /// a load.
    pub(super) async fn is_served(&mut self, what: &'static str, told: oneshot::Receiver<Served>) -> Result<()> {
        match timeout(ANSWER_TIMEOUT, told).await {
            Ok(Ok(served)) => self.origin = Origin::Served(served),
            // The VM's thread is ending, and so the VMM ends too.
            Ok(Err(_)) => return Err(self.process.ended(what, "its memory could not be served").await),
            Err(_elapsed) => {
                let why = format!("Firecracker did not hand its memory over within {ANSWER_TIMEOUT:?}");
                return Err(self.give_up(what, why).await);
            }
        }
        Ok(())
    }

    /// Loads the device state from its file in the room, and removes the file, so that the next save can make it.
    pub(super) async fn load(&mut self, memory: Backend) -> Result<()> {
        const WHAT: &str = "restore the machine";
        let began = Instant::now();
        self.put(WHAT, "/snapshot/load", &config::load(memory), patient(SNAPSHOT_TIMEOUT)).await?;
        self.restored.load = began.elapsed();
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

    /// The error of a request that failed. Where the API closed, Firecracker is ending, and its exit code is the better
    /// error. Where the API hangs, no later request would be answered, so the machine is ended.
    async fn explain(&mut self, what: &'static str, error: ApiError) -> Error {
        match error {
            ApiError::Refused { .. } => Error::failed(what)(error.into()),
            ApiError::Closed(_) => {
                // Its thread may still wait for the memory of a VMM that is gone.
                if let Some(leave) = &self.leave {
                    leave.now();
                }
                self.process.ended(what, NO_API).await
            }
            ApiError::TimedOut { .. } | ApiError::NotUp { .. } | ApiError::Strange { .. } => {
                self.give_up(what, error.to_string()).await
            }
        }
    }

    async fn give_up(&mut self, what: &'static str, why: String) -> Error {
        if let Some(leave) = &self.leave {
            leave.now();
        }
        self.process.give_up(what, why).await
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
    async fn describe(&mut self, guest: &Metadata) -> Result<()> {
        let began = Instant::now();
        self.put("describe the guest", config::METADATA, &config::metadata(guest), ANSWER_TIMEOUT).await?;
        self.restored.describe = began.elapsed();
        Ok(())
    }

    async fn resume(&mut self) -> Result<()> {
        let began = Instant::now();
        self.set_state("let the guest run", VmState::Resumed).await?;
        self.restored.has_run(began.elapsed());
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        let began = Instant::now();
        self.set_state("stop the guest", VmState::Paused).await?;
        self.saved = SavePhases { stop: began.elapsed(), ..SavePhases::default() };
        Ok(())
    }

    /// Copies nothing ahead, since Firecracker tells what was written only when it is stopped.
    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter> {
        Ok(memory)
    }

    async fn save(&mut self, into: SpaceWriter) -> Result<Saved> {
        const WHAT: &str = "save the machine";
        let began = Instant::now();
        self.put(WHAT, "/snapshot/create", &config::create(), patient(SNAPSHOT_TIMEOUT)).await?;
        self.saved.memory = began.elapsed();
        let (door, memory_bytes) = (Arc::clone(&self.door), self.memory_bytes);
        let read = move || {
            let diff = door.open(MEMORY)?;
            let len = diff.metadata()?.len();
            if len != memory_bytes {
                return Err(io::Error::other(format!(
                    "the VMM's file {MEMORY} has {len} bytes, and not {memory_bytes}"
                )));
            }
            Ok((diff, door.read(STATE, STATE_BYTES_MAX)?))
        };
        let began = Instant::now();
        let (diff, state) = blocking(WHAT, read).await?.map_err(|e| Error::failed(WHAT)(e.into()))?;
        self.saved.state = began.elapsed();
        Ok(Saved { memory: SavedMemory::Copied { diff, into }, state })
    }

    /// Removes the file of written memory. Firecracker reports each written page once, so until the file is published
    /// it stays, and the next diff adds to it.
    fn saved(&mut self) {
        if let Err(error) = self.door.remove(MEMORY) {
            tracing::warn!(%error, "the next snapshot will store some memory again");
        }
    }

    fn restore_report(&self) -> Option<RestoreReport> {
        self.origin.report(self.restored, self.tracking())
    }

    fn tracking(&self) -> Tracking {
        Tracking::Vmm
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
/// Some tens of KiB a processor. More would only fill wrenn's memory.
const STATE_BYTES_MAX: u64 = 64 << 20;
const NO_API: &str = "it closed its API";
