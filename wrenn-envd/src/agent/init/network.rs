//! The guest's two interfaces. The addresses never change: every guest has the same, in its own namespace.

use std::{fs, path::Path};

use super::{
    cmdline::{Cmdline, Network},
    device::wait_for,
    step::{BootError, Step as _},
};
use crate::agent::sys;

/// Brings up the loopback, and `eth0` when the command line has an address for it.
pub(super) fn configure(cmdline: &Cmdline) -> Result<(), BootError> {
    let socket = sys::interface_socket().step("open a socket")?;
    sys::bring_up(&socket, "lo").step("bring lo up")?;
    let Some(Network { address, netmask, gateway }) = cmdline.network else { return Ok(()) };

    wait_for(Path::new("/sys/class/net").join(INTERFACE).as_path()).step(format!("wait for {INTERFACE}"))?;
    // There is no router to ask: without this the kernel solicits one, and pauses have packets to lose.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6"), "1");
    sys::set_address(&socket, INTERFACE, address, netmask).step(format!("give {INTERFACE} {address}"))?;
    sys::bring_up(&socket, INTERFACE).step(format!("bring {INTERFACE} up"))?;
    match gateway {
        Some(gateway) => sys::add_default_route(&socket, gateway).step(format!("route to {gateway}")),
        None => Ok(()),
    }
}

const INTERFACE: &str = "eth0";
