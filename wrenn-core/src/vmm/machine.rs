//! What wrenn asks of a virtual machine monitor.

use async_trait::async_trait;
use tokio::sync::watch;
use wrenn_snapshot::{SpaceWriter, WorkingSet};

use crate::error::Result;
use crate::network::slot::Network;
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::metadata::Metadata;
use crate::vmm::paging::{RestoreReport, Ways};
use crate::vmm::parts::{BootMedia, Parts, Restore};
use crate::vmm::phases::SavePhases;
use crate::vmm::saved::Saved;
use crate::vmm::shape::MachineShape;

/// A driver.
#[async_trait]
pub(crate) trait Vmm: std::fmt::Debug + Send + Sync {
    /// The driver's name and the VMM's version, as snapshots record it.
    fn version(&self) -> &str;

    /// The ways in which memory can come to a restored guest here.
    fn ways(&self) -> Ways;

    /// A network of a machine's own: a slot.
    async fn network(&self) -> Result<Network> {
        Network::slot().await
    }

    /// Starts a machine from its kernel. It runs at once.
    async fn boot(&self, shape: &MachineShape, parts: Parts, media: BootMedia) -> Result<Box<dyn Machine>>;

    /// Starts a machine from a generation's memory and device state. It is stopped; the drive may be filled meanwhile,
    /// and has to be whole when [`Machine::resume`] is called.
    async fn restore(&self, shape: &MachineShape, parts: Parts, from: Restore) -> Result<Box<dyn Machine>>;
}

/// One virtual machine. Dropping it kills it.
///
/// Every wait for a VMM has a limit. A VMM that does not keep one is killed, and both the error and the end that
/// [`exited`](Self::exited) tells say what was waited for.
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

    /// How long the steps of the last [`stop`](Self::stop) and [`save`](Self::save) took.
    fn save_phases(&self) -> SavePhases;

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
