//! The properties of a machine that its snapshots depend on.

use serde::{Deserialize, Serialize};

/// What executes the guest's instructions.
///
/// ```
/// use wrenn_core::Acceleration;
///
/// assert_eq!(serde_json::to_string(&Acceleration::Kvm)?, r#""kvm""#);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// The processor executes them, through `/dev/kvm`.
    Kvm,
    /// QEMU emulates them. This needs nothing of the host, and runs at about a tenth of the speed.
    Tcg,
}

/// The properties of a machine that its snapshots depend on. A restore has to make a machine with the same ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineShape {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) acceleration: Acceleration,
    /// The rate of an emulated guest's clock, which is the host's time stamp counter; `None` under KVM.
    pub(crate) tsc_khz: Option<u32>,
}
