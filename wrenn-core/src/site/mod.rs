//! The parts of a host that all of its sandboxes use: the data directory, the store of snapshots, the VMM, and how
//! memory is handled.

pub(crate) mod authority;
pub(crate) mod collector;
pub(crate) mod data_dir;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod garbage;
pub(crate) mod lock;
pub(crate) mod record;
pub(crate) mod records;
pub(crate) mod step;
pub(crate) mod survey;

use std::sync::Arc;

use wrenn_snapshot::LocalStore;

use crate::network::way_out::HostNetwork;
use crate::site::collector::Collector;
use crate::site::data_dir::DataDir;

use crate::site::step::Observer;
use crate::vmm::machine::Vmm;
use crate::vmm::probe::Probe;
use crate::vmm::residents::Residents;
use crate::vmm::standbys::Standbys;
use crate::vmm::ways::Handling;

/// What every sandbox of a host shares.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) data: DataDir,
    pub(crate) store: LocalStore,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) probe: Probe,
    pub(crate) memory: Handling,
    pub(crate) residents: Residents,
    pub(crate) standbys: Standbys,
    pub(crate) network: HostNetwork,
    pub(crate) observer: Observer,
    pub(crate) collector: Collector,
}
