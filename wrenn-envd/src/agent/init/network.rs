//! The guest's two interfaces. The addresses never change: every guest has the same, in its own namespace.

use std::{fs, io, path::Path};

use super::{
    cmdline::{Cmdline, Network, NetworkV6},
    device::wait_for,
    step::{BootError, Step as _},
};
use crate::agent::{console::complain, sys};

/// Brings up the loopback, and `eth0` when the command line has an address for it.
pub(super) fn configure(cmdline: &Cmdline) -> Result<(), BootError> {
    let socket = sys::interface_socket().step("open a socket")?;
    sys::bring_up(&socket, "lo").step("bring lo up")?;
    let Some(Network { address, netmask, gateway }) = cmdline.network else { return Ok(()) };

    wait_for(Path::new("/sys/class/net").join(INTERFACE).as_path()).step(format!("wait for {INTERFACE}"))?;
    // There is no router to ask: otherwise the kernel solicits one, and pauses have packets to lose.
    match cmdline.network_v6 {
        Some(_) => QUIET_IPV6.iter().for_each(|(name, value)| set_ipv6(name, value)),
        None => set_ipv6("disable_ipv6", "1"),
    }
    sys::set_address(&socket, INTERFACE, address, netmask).step(format!("give {INTERFACE} {address}"))?;
    sys::bring_up(&socket, INTERFACE).step(format!("bring {INTERFACE} up"))?;
    if let Some(gateway) = gateway {
        sys::add_default_route(&socket, gateway).step(format!("route to {gateway}"))?;
    }
    if let Some(network) = cmdline.network_v6.filter(|_| Path::new(IPV6_SETTINGS).exists()) {
        // A guest whose kernel has no use for it has IPv4 alone.
        if let Err(error) = configure_v6(network) {
            complain(&format!("give {INTERFACE} {}: {error}", network.address));
        }
    }
    Ok(())
}

fn configure_v6(NetworkV6 { address, prefix_length, gateway }: NetworkV6) -> io::Result<()> {
    sys::add_address_v6(INTERFACE, address, prefix_length)?;
    gateway.map_or(Ok(()), |gateway| sys::add_default_route_v6(INTERFACE, gateway))
}

/// Changes one of the interface's settings, where the kernel has it.
fn set_ipv6(name: &str, value: &str) {
    let _ = fs::write(format!("{IPV6_SETTINGS}/{INTERFACE}/{name}"), value);
}

const INTERFACE: &str = "eth0";
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// No address but the one that is given, which nobody else on the link has, and no router that is not named.
const QUIET_IPV6: [(&str, &str); 3] = [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0")];
