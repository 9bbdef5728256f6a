//! The start of a Firecracker, rehearsed: in a room and, where one is used, by the jailer, up to the answer of its API.

use std::fs::File;

use crate::error::{Error, Result};
use crate::network::slot::Network;
use crate::network::way_out::HostNetwork;
use crate::runtime::blocking;
use crate::unnamed::unnamed_file;
use crate::vmm::firecracker::{Firecracker, Starting};
use crate::vmm::identity::Identity;
use crate::vmm::parts::Parts;
use crate::vmm::shape::{Acceleration, MachineShape};

impl Firecracker {
    /// Starts a machine without a guest, and ends it. Takes some 40 ms, and 80 with a jailer.
    ///
    /// # Errors
    /// [`Error::Host`] where a right is missing; its source names the step.
    pub(crate) async fn rehearse(&self) -> Result<()> {
        let (program, rooms) = (self.program.clone(), self.rooms.clone());
        let open = move || {
            let base = File::open(&program).map_err(Error::io("read", &program))?;
            let drive = unnamed_file(&rooms).map_err(Error::io("make a file in", &rooms))?;
            Ok::<_, Error>((base, drive, Identity::reserve()?))
        };
        let (base, drive, identity) = blocking("rehearse the start of Firecracker", open).await??;
        let network = Network::slot(&HostNetwork::default().slots).await?;
        let parts = Parts { base, drive, plug: network.plug, identity, flat: None };
        let shape = MachineShape { vcpus: 1, memory_mib: 128, acceleration: Acceleration::Kvm, tsc_khz: None };
        let starting = Starting { contents: Vec::new(), mounts: Vec::new(), is_served: false };
        let mut machine = self.start(&shape, parts, starting).await?;
        machine.process.kill().await;
        Ok(())
    }
}
