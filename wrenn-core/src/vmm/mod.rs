//! Virtual machine monitors: what wrenn asks of one, and the drivers that do it.
//!
//! ```text
//!  Vmm::boot ────────────────┐
//!                            ▼         ┌── resume ──┐
//!  Vmm::restore ─────▶ Machine (stopped, describe)  ▼
//!                            ▲                   running
//!                   save ────┘◀─ stop ── save_ahead ┘        kill, or the VMM's own end, from anywhere
//! ```

pub(crate) mod console;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod firecracker;
mod inject;
pub(crate) mod memory;
mod metadata;
mod process;
pub(crate) mod qemu;
pub(crate) mod tsc;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::watch;
use wrenn_snapshot::{Generation, HeldPages, PAGE_BYTES, Populate, ServeOptions, SpaceWriter, WorkingSet};

pub(crate) use self::metadata::Metadata;
use crate::agent::Connector;
use crate::{Paging, RestoreReport, Result};
use console::Console;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's emulation: needs nothing of the host, at some tenth of the speed.
    Tcg,
}

/// What of a machine its snapshots depend on, and a restore has to give again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineShape {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) acceleration: Acceleration,
    /// The rate of an emulated guest's clock, which is the host's time stamp counter; `None` under KVM.
    pub(crate) tsc_khz: Option<u32>,
}

/// What is touched first is what the next restore wants first; 48 MiB hold what a command or two need.
const RECORD_PAGES_MAX: u32 = 12 * 1024;
/// A quarter of a processor, and two seconds for 1 GiB.
const POPULATE_BYTES_PER_SECOND: u64 = 512 << 20;

/// The name of the device state among a generation's blobs.
pub(crate) const STATE_BLOB: &str = "state";

/// The user and group that a VMM runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What a machine is plugged into: all of it already open, so that the VMM needs no rights of its own.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) base: File,
    pub(crate) drive: File,
    pub(crate) plug: Plug,
    pub(crate) identity: Option<Identity>,
}

/// What a machine is restored from, and how.
#[derive(Debug)]
pub(crate) struct Restore {
    pub(crate) generation: Generation,
    pub(crate) paging: Paging,
    /// What an earlier restore of the generation touched, to have ready before it is asked for.
    pub(crate) working_set: Option<WorkingSet>,
    /// All of its memory, for [`Paging::Mapped`].
    pub(crate) flat: Option<File>,
}

impl Restore {
    /// How a page server is to serve it. `watch` tells the end of the VMM.
    fn serve_options(&self, watch: OwnedFd) -> ServeOptions {
        ServeOptions {
            watch: Some(watch),
            prefetch: self.working_set.clone(),
            record_pages_max: if self.working_set.is_none() { RECORD_PAGES_MAX } else { 0 },
            populate: match self.paging {
                Paging::Populate => Populate::InBackground { bytes_per_second: POPULATE_BYTES_PER_SECOND },
                Paging::Lazy | Paging::OnDemand | Paging::Eager | Paging::Mapped => Populate::OnDemand,
            },
            ..ServeOptions::default()
        }
    }
}

/// What a machine boots.
#[derive(Debug)]
pub(crate) struct BootMedia {
    pub(crate) kernel: File,
    pub(crate) initramfs: File,
}

/// A machine as it was at one instant.
pub(crate) struct Saved {
    pub(crate) memory: SavedMemory,
    pub(crate) state: Vec<u8>,
}

/// A machine's memory, on its way into a generation.
pub(crate) enum SavedMemory {
    /// All of it is there.
    Written(SpaceWriter),
    /// It is a copy that the VMM made, and which is still to be added.
    Copied { diff: File, into: SpaceWriter },
    /// The rest of it keeps what it held while the guest goes on, and is still to be added.
    Held { pages: HeldPages, into: SpaceWriter },
}

impl SavedMemory {
    /// What is still to be added and the guest may write to meanwhile.
    pub(crate) fn held_bytes(&self) -> u64 {
        match self {
            Self::Held { pages, .. } => pages.count() * PAGE_BYTES as u64,
            Self::Written(_) | Self::Copied { .. } => 0,
        }
    }

    /// Adds what is still to be added. Blocks.
    pub(crate) fn finish(self) -> Result<SpaceWriter> {
        match self {
            Self::Written(memory) => Ok(memory),
            Self::Copied { diff, mut into } => {
                // A page of zeros that was written is data in the VMM's file; only what was not written is a hole.
                into.add_sparse(&diff)?;
                Ok(into)
            }
            Self::Held { pages, mut into } => {
                into.add_held(&pages)?;
                Ok(into)
            }
        }
    }
}

/// How a VMM ended.
#[derive(Debug, Clone)]
pub(crate) enum Exit {
    /// By itself, or killed; the text is its exit status.
    Process(String),
    /// Killed, because its memory could not be served any more.
    PageServer(Arc<wrenn_snapshot::Error>),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(status) => f.write_str(status),
            Self::PageServer(error) => write!(f, "killed, since its memory could not be read: {error}"),
        }
    }
}

/// How a machine is plugged in, and how its agent is reached.
pub(crate) struct Network {
    pub(crate) plug: Plug,
    pub(crate) connector: Arc<dyn Connector>,
}

/// The machine's end of its network.
#[derive(Debug)]
pub(crate) enum Plug {
    Tap {
        tap: wrenn_net::Tap,
        /// Where the tap is, for a VMM that opens it by name.
        namespace: OwnedFd,
    },
    /// What the fake needs.
    #[cfg(test)]
    Nothing,
}

/// A driver.
#[async_trait]
pub(crate) trait Vmm: std::fmt::Debug + Send + Sync {
    /// The driver's name and the VMM's version, as snapshots record it.
    fn version(&self) -> &str;

    /// A network of a machine's own: a slot.
    async fn network(&self) -> Result<Network> {
        const WHAT: &str = "make the network slot";
        let (slot, tap) = crate::guest::blocking(WHAT, wrenn_net::Slot::create).await??;
        let namespace = slot.namespace().try_clone_to_owned().map_err(|e| crate::Error::failed(WHAT)(e.into()))?;
        Ok(Network { plug: Plug::Tap { tap, namespace }, connector: Arc::new(SlotConnector(slot)) })
    }

    /// Starts a machine from its kernel. It runs at once.
    async fn boot(&self, shape: &MachineShape, parts: Parts, media: BootMedia) -> Result<Box<dyn Machine>>;

    /// Starts a machine from a generation's memory and device state. It is stopped; the drive may be filled meanwhile,
    /// and has to be whole when [`Machine::resume`] is called.
    async fn restore(&self, shape: &MachineShape, parts: Parts, from: Restore) -> Result<Box<dyn Machine>>;
}

/// One virtual machine. Dropping it kills it.
///
/// # Cancel-Safety
/// A cancelled method leaves the machine in a state that only [`kill`](Self::kill) may follow.
#[async_trait]
pub(crate) trait Machine: std::fmt::Debug + Send + Sync {
    /// Puts what the guest is into the metadata service that it has, before it runs on. A VMM without one has nothing to do:
    /// the agent is told the same by its host.
    async fn describe(&mut self, _guest: &Metadata) -> Result<()> {
        Ok(())
    }

    /// Lets the guest run.
    async fn resume(&mut self) -> Result<()>;

    /// Stops the guest's processors and drains its block devices.
    async fn stop(&mut self) -> Result<()>;

    /// Copies memory while the guest runs, until little is left to copy. What the guest writes meanwhile is added by
    /// [`save`](Self::save).
    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter>;

    /// Takes what a stopped machine's guest wrote since the generation that it came from, and was not copied ahead, and
    /// the device state. From then on the machine may go on.
    async fn save(&mut self, memory: SpaceWriter) -> Result<Saved>;

    /// What the last [`save`](Self::save) wrote is published: the next one counts from there.
    fn saved(&mut self);

    /// How its restore goes; `None` for a machine that was booted.
    fn restore_report(&self) -> Option<RestoreReport>;

    /// What a lazily restored guest touched, in order, as far as it was recorded.
    fn working_set(&self) -> Option<WorkingSet>;

    /// Tells the end of the VMM, whoever ended it.
    fn exited(&self) -> watch::Receiver<Option<Exit>>;

    /// What the guest and the VMM printed.
    fn console(&self) -> &Console;

    /// The VMM's process.
    fn pid(&self) -> u32;

    /// Ends the VMM, and returns when it is gone.
    async fn kill(&mut self);
}

/// Reaches the guest from inside the slot's namespace.
struct SlotConnector(wrenn_net::Slot);

impl Connector for SlotConnector {
    fn connect(&self, port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(self.0.connect(port))
    }
}
