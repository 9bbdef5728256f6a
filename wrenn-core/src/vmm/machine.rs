//! The interface between wrenn and a driver of a virtual machine monitor.

use async_trait::async_trait;
use tokio::sync::watch;
use wrenn_net::SlotPool;
use wrenn_snapshot::{SpaceWriter, WorkingSet};

use crate::error::Result;
use crate::network::slot::Network;
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::metadata::Metadata;
use crate::vmm::paging::{Paging, RestoreReport};
use crate::vmm::parts::{BootMedia, Parts, Restore};
use crate::vmm::phases::SavePhases;
use crate::vmm::saved::{Begun, Saved};
use crate::vmm::shape::MachineShape;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::Ways;

/// A driver, which starts machines.
#[async_trait]
pub(crate) trait Vmm: std::fmt::Debug + Send + Sync {
    /// The driver's name and the VMM's version, as snapshots record it.
    fn version(&self) -> &str;

    /// The ways in which a restored guest can get its memory on this host, and have its writes tracked. Blocks for some
    /// milliseconds, since they are tried.
    fn ways(&self) -> Ways;

    /// Makes a network for one machine, which is a slot.
    async fn network(&self, slots: &SlotPool) -> Result<Network> {
        Network::slot(slots).await
    }

    /// Starts a machine from its kernel. The machine runs at once.
    async fn boot(&self, shape: &MachineShape, parts: Parts, media: BootMedia) -> Result<Box<dyn Machine>>;

    /// Starts a VMM for a machine that is restored once it is said from what.
    async fn stand_by(&self, shape: &MachineShape, parts: Parts, paging: Paging) -> Result<Box<dyn Standby>>;

    /// Whether a VMM can stand by before it is known what is restored with this paging.
    fn stands_by_for_any(&self, paging: Paging) -> bool;
}

/// A VMM that has started, and has no generation yet. Dropping it kills it.
#[async_trait]
pub(crate) trait Standby: std::fmt::Debug + Send + Sync {
    /// Makes a machine of a generation's memory and device state. The machine is stopped. The drive may be filled while
    /// this runs, and has to be complete when [`Machine::resume`] is called.
    async fn restore(self: Box<Self>, from: Restore) -> Result<Box<dyn Machine>>;

    /// Whether the VMM has ended.
    fn has_ended(&self) -> bool;

    /// Notes that it was started before anybody asked for it, so that nobody is told of having waited for that.
    fn stood_by(&mut self);
}

/// One virtual machine. Dropping it kills it.
///
/// Every wait for a VMM has a limit. A VMM that exceeds the limit is killed. Both the error and the end that
/// [`exited`](Self::exited) reports name what was waited for.
///
/// # Cancel-Safety
/// A cancelled method leaves the machine in a state that only [`kill`](Self::kill) may follow.
#[async_trait]
pub(crate) trait Machine: std::fmt::Debug + Send + Sync {
    /// Gives the guest's identity to the VMM's metadata service, before the guest runs. A VMM without such a service
    /// does nothing, since wrenn tells the agent the same.
    async fn describe(&mut self, _guest: &Metadata) -> Result<()> {
        Ok(())
    }

    /// Lets the guest run.
    async fn resume(&mut self) -> Result<()>;

    /// Stops the guest's processors and drains its block devices.
    async fn stop(&mut self) -> Result<()>;

    /// Copies memory while the guest runs, until little is left to copy. [`save`](Self::save) adds what the guest
    /// writes during that time.
    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter>;

    /// Saves the device state of a stopped machine, and the memory that its guest wrote since the last generation and
    /// that was not copied ahead. The machine may go on when this returns.
    async fn save(&mut self, memory: SpaceWriter) -> Result<Saved>;

    /// Whether [`save_drive`](Self::save_drive) is going to know what was written to the drive since the last generation.
    fn knows_drive(&self) -> bool {
        false
    }

    /// Begins to save the drive of a machine that is stopped and was [saved](Self::save): what was written to it since
    /// the last generation. The machine may go on when this returns, and has to be asked for
    /// [`drive_saved`](Self::drive_saved) then.
    async fn save_drive(&mut self, drive: SpaceWriter) -> Result<Begun> {
        Ok(Begun::Unknown(Box::new(drive)))
    }

    /// Waits until the VMM has copied all of a drive whose saving has begun.
    async fn drive_saved(&mut self) -> Result<()> {
        Ok(())
    }

    /// Tells the machine that its last [`save`](Self::save) is published, so that the next save has only what is
    /// written since.
    fn saved(&mut self);

    /// What the machine's restore has done so far; `None` for a machine that was booted.
    fn restore_report(&self) -> Option<RestoreReport>;

    /// How the memory is found that the guest writes.
    fn tracking(&self) -> Tracking;

    /// How long the steps of the last [`stop`](Self::stop) and [`save`](Self::save) took.
    fn save_phases(&self) -> SavePhases;

    /// The pages that a lazily restored guest touched, in order, as far as they were recorded.
    fn working_set(&self) -> Option<WorkingSet>;

    /// Reports the end of the VMM, for whatever reason it ended.
    fn exited(&self) -> watch::Receiver<Option<Exit>>;

    /// What the guest and the VMM printed.
    fn console(&self) -> &Console;

    /// The VMM's process.
    fn pid(&self) -> u32;

    /// Ends the VMM, and returns when it is gone.
    async fn kill(&mut self);
}
