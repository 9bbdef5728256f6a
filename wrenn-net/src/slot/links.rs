//! The links of a slot's namespace, with their addresses, and the route for what is marked. All of this is in the calling
//! thread's namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::error::NetError;
use crate::rules;
use crate::slot::addresses::{
    GUEST_ADDRESS_V6, GUEST_LINK, HOST_ADDRESS, HOST_ADDRESS_V6, HOST_LINK, PREFIX_LEN, PREFIX_LEN_V6,
};

/// The number of a link.
pub(super) fn index_of(name: &str) -> Result<u32, NetError> {
    if_nametoindex(name).map_err(|e| NetError::at("find a link")(e.into()))
}

/// Brings up the loopback and the tap, which has its IPv4 address then.
pub(super) async fn configure(tap: u32) -> Result<(), NetError> {
    with_netlink(async |netlink| {
        let up_lo = LinkUnspec::new_with_name("lo").up().build();
        netlink.link().set(up_lo).execute().await.map_err(NetError::netlink("bring up the loopback"))?;
        let address = netlink.address().add(tap, HOST_ADDRESS.into(), PREFIX_LEN);
        address.execute().await.map_err(NetError::netlink("give the tap its address"))?;
        let up_tap = LinkUnspec::new_with_index(tap).address(HOST_LINK.to_vec()).up().build();
        netlink.link().set(up_tap).execute().await.map_err(NetError::netlink("bring up the tap"))?;
        // What is marked is for this host, whatever its address.
        let rule = netlink.rule().add().v4().fw_mark(rules::MARK).table_id(rules::ROUTES).action(RuleAction::ToTable);
        rule.execute().await.map_err(NetError::netlink("add a rule for routes"))?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().table_id(rules::ROUTES).kind(RouteType::Local);
        let route = route.scope(RouteScope::Host).output_interface(index_of("lo")?).build();
        netlink.route().add(route).execute().await.map_err(NetError::netlink("add a route"))
    })
    .await
}

/// Gives the tap, which is up, its IPv6 address, and has what is marked go to this host.
pub(super) async fn configure_v6(tap: u32) -> Result<(), NetError> {
    with_netlink(async |netlink| {
        let rule = netlink.rule().add().v6().fw_mark(rules::MARK).table_id(rules::ROUTES).action(RuleAction::ToTable);
        rule.execute().await.map_err(NetError::netlink("add a rule for IPv6 routes"))?;
        let route = RouteMessageBuilder::<Ipv6Addr>::new().table_id(rules::ROUTES).kind(RouteType::Local);
        let route = route.output_interface(index_of("lo")?).build();
        netlink.route().add(route).execute().await.map_err(NetError::netlink("add an IPv6 route"))?;
        let mut address = netlink.address().add(tap, IpAddr::V6(HOST_ADDRESS_V6), PREFIX_LEN_V6);
        // Nobody else can have it: the link has two ends.
        address.message_mut().header.flags = AddressHeaderFlags::Nodad;
        address.execute().await.map_err(NetError::netlink("give the tap its IPv6 address"))?;
        // The kernel asks nobody for it: most of what goes to the guest comes from addresses that are not here, and for those
        // it would ask from an address of the link, which the tap has not.
        let guest = netlink.neighbours().add(tap, IpAddr::V6(GUEST_ADDRESS_V6)).link_layer_address(&GUEST_LINK);
        guest.execute().await.map_err(NetError::netlink("tell the tap who the guest is"))
    })
    .await
}

async fn with_netlink(work: impl AsyncFnOnce(Handle) -> Result<(), NetError>) -> Result<(), NetError> {
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(NetError::at("open a netlink socket"))?;
    let connection = tokio::spawn(connection);
    let done = work(netlink).await;
    connection.abort();
    done
}
