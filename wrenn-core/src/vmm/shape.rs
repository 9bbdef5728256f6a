//! What a machine is made of, as far as its snapshots depend on it.

use serde::{Deserialize, Serialize};

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
