//! One sandbox's network.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{LinkUnspec, RouteMessageBuilder};
use tokio::net::{TcpSocket, TcpStream};

use crate::error::NetError;
use crate::gate::Gate;
use crate::netns::NetNs;
use crate::rules;
use crate::sys;

/// The address of every guest, inside its own namespace.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The host's end of the tap, inside the namespace; the guest's gateway.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// A server for names that a guest can ask. There is none: whichever a guest asks, its way out answers.
pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 53);
/// The prefix length of both addresses.
pub const PREFIX_LEN: u8 = 30;
/// The hardware address of every guest's `eth0`: fixed, since it is part of a snapshot's device state.
pub const GUEST_MAC: &str = "02:57:52:45:4e:15";

const HOST_MAC: [u8; 6] = [0x02, 0x57, 0x52, 0x45, 0x4e, 0x16];
const TAP_NAME: &str = "tap0";

/// A network namespace with a tap, for one VM.
///
/// Dropping it and ending the VMM that has the tap frees both.
///
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// let (slot, tap, gate) = wrenn_net::Slot::create()?;
/// # drop(gate);
/// let inherited = tap.into_queue();
/// // … start a VMM with it …
/// let agent = slot.connect(49983).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Slot {
    netns: Arc<NetNs>,
}

/// A slot's tap, before a VMM has it.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Its name, inside the namespace.
    pub const NAME: &'static str = TAP_NAME;

    /// Its one queue, for a VMM to inherit.
    #[must_use]
    pub fn into_queue(self) -> OwnedFd {
        self.0
    }

    /// Leaves it to a VMM that runs as the user `uid` in the namespace, and opens the tap by its [name](Self::NAME). It
    /// then lives as long as the namespace.
    ///
    /// # Errors
    /// [`NetError::Permission`] without the rights.
    pub fn leave_to(self, uid: u32) -> Result<(), NetError> {
        sys::leave_tap(&self.0, uid).map_err(NetError::at("give the tap to the VMM's user"))
    }
}

impl Slot {
    /// Makes the namespace, the tap and its address, and the gate of a way out, which leads nowhere until
    /// [it is opened](crate::EgressBuilder::open). Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`NetError::Permission`] without the rights, [`NetError::NoTunDevice`] without the driver,
    /// [`NetError::TunForbidden`] where its device may not be opened. Nothing is left behind by a failure.
    pub fn create() -> Result<(Self, Tap, Gate), NetError> {
        let (netns, (tap, gate)) = NetNs::create(set_up)?;
        Ok((Self { netns: Arc::new(netns) }, Tap(tap), gate))
    }

    /// The network namespace, for a VMM to be started in.
    #[must_use]
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Connects to a port of the guest.
    ///
    /// # Errors
    /// The kernel's: `ConnectionRefused` where nothing listens. A guest that is not up does not answer, so callers
    /// bound the wait.
    ///
    /// # Cancel-Safety
    /// Cancelling closes the socket.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let netns = Arc::clone(&self.netns);
        let socket = tokio::task::spawn_blocking(move || netns.run(TcpSocket::new_v4)).await??;
        socket.set_nodelay(true)?;
        socket.connect(SocketAddrV4::new(GUEST_ADDRESS, port).into()).await
    }
}

fn set_up() -> Result<(OwnedFd, Gate), NetError> {
    let tun = open_tun()?;
    sys::attach_tap(&tun, TAP_NAME).map_err(NetError::at("make a tap"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NetError::at("start the netlink runtime"))?;
    runtime.block_on(configure())?;
    let gate = Gate::open(TAP_NAME).map_err(NetError::at("open the guest's way out"))?;
    let ports = gate.ports().map_err(NetError::at("name the guest's way out"))?;
    rules::loosen_loopback().map_err(NetError::at("set the loopback's filter"))?;
    rules::make_table(TAP_NAME, HOST_ADDRESS, ports).map_err(NetError::rules)?;
    Ok((tun.into(), gate))
}

fn open_tun() -> Result<File, NetError> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => NetError::TunForbidden(source),
        _ => NetError::NoTunDevice(source),
    })
}

async fn configure() -> Result<(), NetError> {
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(NetError::at("open a netlink socket"))?;
    let connection = tokio::spawn(connection);
    let index = if_nametoindex(TAP_NAME).map_err(|e| NetError::at("find the tap")(e.into()))?;
    let up_lo = LinkUnspec::new_with_name("lo").up().build();
    netlink.link().set(up_lo).execute().await.map_err(NetError::netlink("bring up the loopback"))?;
    let address = netlink.address().add(index, HOST_ADDRESS.into(), PREFIX_LEN);
    address.execute().await.map_err(NetError::netlink("give the tap its address"))?;
    let up_tap = LinkUnspec::new_with_index(index).address(HOST_MAC.to_vec()).up().build();
    netlink.link().set(up_tap).execute().await.map_err(NetError::netlink("bring up the tap"))?;
    // What is marked is for this host, whatever its address.
    let rule = netlink.rule().add().v4().fw_mark(rules::MARK).table_id(rules::ROUTES).action(RuleAction::ToTable);
    rule.execute().await.map_err(NetError::netlink("add a rule for routes"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().table_id(rules::ROUTES).kind(RouteType::Local);
    let lo = if_nametoindex("lo").map_err(|e| NetError::at("find the loopback")(e.into()))?;
    let route = route.scope(RouteScope::Host).output_interface(lo).build();
    netlink.route().add(route).execute().await.map_err(NetError::netlink("add a route"))?;
    connection.abort();
    Ok(())
}
