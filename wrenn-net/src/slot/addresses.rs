//! The addresses of a slot: the same in each, so that a restored guest needs no new ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::rules::Ends;

/// The address of every guest, inside its own namespace.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The host's end of the tap, inside the namespace; the guest's gateway.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// A server for names that a guest can ask. There is none: whichever a guest asks, its way out answers.
pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 53);
/// The prefix length of both addresses.
pub const PREFIX_LEN: u8 = 30;

/// The IPv6 address of every guest, inside its own namespace.
///
/// It is a site-local one (RFC 3879 has them no longer used, and no network gives them out), since the guest's programs sort
/// the addresses of a name by those that they would come from (RFC 6724). The guest's IPv4 address is one of a link. With
/// a unique local address beside it, IPv6 would be tried first wherever a name has both; with this one, IPv4 is.
pub const GUEST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15);
/// The host's end of the tap by IPv6; the guest's gateway.
pub const HOST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x16);
/// The prefix length of both IPv6 addresses.
pub const PREFIX_LEN_V6: u8 = 126;

/// The hardware address of every guest's `eth0`: fixed, since it is part of a snapshot's device state.
pub const GUEST_MAC: &str = "02:57:52:45:4e:15";

/// [`GUEST_MAC`], as a link has it.
pub(crate) const GUEST_LINK: [u8; 6] = [0x02, 0x57, 0x52, 0x45, 0x4e, 0x15];
pub(super) const HOST_LINK: [u8; 6] = [0x02, 0x57, 0x52, 0x45, 0x4e, 0x16];
pub(super) const ENDS_V4: Ends = Ends { host: IpAddr::V4(HOST_ADDRESS), guest: IpAddr::V4(GUEST_ADDRESS) };
pub(super) const ENDS_V6: Ends = Ends { host: IpAddr::V6(HOST_ADDRESS_V6), guest: IpAddr::V6(GUEST_ADDRESS_V6) };

/// The guest's address of the same version of IP.
pub(crate) fn guest_address(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { ENDS_V4.guest } else { ENDS_V6.guest }
}

/// Whether an address is that of the tap's end in the slot, where the slot's kernel answers.
pub(crate) fn is_host(address: IpAddr) -> bool {
    address == ENDS_V4.host || address == ENDS_V6.host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_hardware_address_is_the_same_in_both_forms() {
        assert_eq!(GUEST_LINK.map(|byte| format!("{byte:02x}")).join(":"), GUEST_MAC);
    }
}
