//! One sandbox's network.

mod addresses;
mod links;

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Once};

use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;

pub use addresses::{
    GUEST_ADDRESS, GUEST_ADDRESS_V6, GUEST_MAC, HOST_ADDRESS, HOST_ADDRESS_V6, NAMESERVER, PREFIX_LEN, PREFIX_LEN_V6,
};
pub(crate) use addresses::{GUEST_LINK, guest_address, is_host};

use crate::error::NetError;
use crate::gate::{self, Gate, Inlets};
use crate::netns::NetNs;
use crate::rules;
use crate::sys;
use addresses::{ENDS_V4, ENDS_V6};

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
    /// [it is opened](crate::EgressBuilder::open). Blocks for some milliseconds. A program without the rights makes it in a
    /// [user namespace](Self::user_namespace).
    ///
    /// # Errors
    /// [`NetError::Permission`] without the rights, [`NetError::UserNamespace`] for a user who cannot get them either,
    /// [`NetError::NoTunDevice`] without the driver, [`NetError::TunForbidden`] where its device may not be opened. Nothing is
    /// left behind by a failure.
    pub fn create() -> Result<(Self, Tap, Gate), NetError> {
        let (netns, (tap, gate)) = NetNs::create(set_up)?;
        Ok((Self { netns: Arc::new(netns) }, Tap(tap), gate))
    }

    /// The network namespace, for a VMM to be started in.
    #[must_use]
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The user namespace that the network namespace belongs to, where this program has no rights to make one otherwise. A
    /// process enters it first, and has the rights to enter the other then.
    #[must_use]
    pub fn user_namespace(&self) -> Option<BorrowedFd<'_>> {
        self.netns.user()
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
    let tap = links::index_of(TAP_NAME)?;
    let is_quiet = rules::quiet_ipv6(tap).map_err(NetError::at("keep the tap from giving itself an IPv6 address"));
    runtime.block_on(links::configure(tap))?;
    let v4 = Inlets::open(ENDS_V4.host).map_err(NetError::at("open the guest's way out"))?;
    rules::loosen_loopback().map_err(NetError::at("set the loopback's filter"))?;
    make_table(ENDS_V4, &v4)?;
    let v6 = is_quiet.and_then(|()| set_up_v6(&runtime, tap)).inspect_err(note_want_of_v6).ok();
    let packets = gate::watch(tap, v6.is_some()).map_err(NetError::at("watch the guest's packets"))?;
    Ok((tun.into(), Gate { packets, tap, v4, v6 }))
}

/// The table comes before the address: until the tap has one, nothing is answered.
fn set_up_v6(runtime: &Runtime, tap: u32) -> Result<Inlets, NetError> {
    let inlets = Inlets::open(ENDS_V6.host).map_err(NetError::at("open the guest's way out by IPv6"))?;
    make_table(ENDS_V6, &inlets)?;
    runtime.block_on(links::configure_v6(tap))?;
    Ok(inlets)
}

fn make_table(ends: rules::Ends, inlets: &Inlets) -> Result<(), NetError> {
    let ports = inlets.ports().map_err(NetError::at("name the guest's way out"))?;
    rules::make_table(TAP_NAME, ends, ports).map_err(NetError::rules)
}

/// Tells once why guests have IPv4 only: a kernel without IPv6, or without a part of what it takes, serves them as well.
fn note_want_of_v6(error: &NetError) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        let cause = std::error::Error::source(error);
        tracing::info!(%error, ?cause, "guests have no IPv6 on this host");
    });
}

fn open_tun() -> Result<File, NetError> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => NetError::TunForbidden(source),
        _ => NetError::NoTunDevice(source),
    })
}
