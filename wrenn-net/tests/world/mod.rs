//! A host, a guest and an internet of a test's own, in three network namespaces. Nothing of them leaves this machine.
//!
//! ```text
//!  guest: 169.254.0.21 ─▶ tap ═ carried by threads ═ tap ─▶ slot ─▶ host: 192.0.2.1 ─▶ veth ─▶ internet: 93.184.216.34, …
//!         fec0::15                                                   2a01:4f8::1                     2606:2800::34, …
//! ```
#![allow(dead_code, clippy::unwrap_used, clippy::print_stdout, reason = "tests; each file uses a part")]

pub(crate) mod client_hello;
pub(crate) mod guest;
pub(crate) mod servers;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use wrenn_net::{Budget, Egress, EgressBuilder, Gate, Limits, Names, NetworkPolicy, Refused, Slot};

use guest::Guest;

/// Everything on the internet is at these addresses.
pub(crate) const INTERNET: [[u8; 4]; 5] =
    [[93, 184, 216, 34], [93, 184, 216, 35], [8, 8, 8, 8], [10, 9, 0, 7], [169, 254, 169, 254]];
pub(crate) const INTERNET_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0x2606, 0x2800, 0, 0, 0, 0, 0, 0x34),
    Ipv6Addr::new(0x2606, 0x2800, 0, 0, 0, 0, 0, 0x35),
    Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 7),
    // 10.9.0.7, by NAT64.
    Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0xa09, 7),
];
pub(crate) const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2a01, 0x4f8, 0, 0, 0, 0, 0, 1);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2a01, 0x4f8, 0, 0, 0, 0, 0, 2);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

pub(crate) struct World {
    pub(crate) internet: Namespace,
    pub(crate) refused: Arc<Mutex<Vec<Refused>>>,
}

/// A network namespace that lives as long as this.
#[derive(Clone)]
pub(crate) struct Namespace(Arc<OwnedFd>);

impl Namespace {
    pub(crate) fn of_this_thread() -> Self {
        Self(Arc::new(File::open("/proc/thread-self/ns/net").unwrap().into()))
    }

    pub(crate) fn new() -> Self {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::of_this_thread()
        })
        .join()
        .unwrap()
    }

    /// Runs something on a thread inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let work = || {
            setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }
}

/// Runs a test in a world of its own; skipped by name where the process may make none.
pub(crate) fn in_a_world<F: Future<Output = ()>>(test: &str, run: impl FnOnce(World) -> F + Send) {
    if let Err(error) = Slot::create() {
        println!("skipped: {test}: {error}");
        return;
    }
    let on_host = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let internet = Namespace::new();
        configure(async |netlink| connect(&netlink, &internet).await);
        internet.run(|| configure(async |netlink| be_the_internet(&netlink).await));
        // Its threads are made here, and so inside.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(World { internet, refused: Arc::default() }));
    };
    std::thread::scope(|scope| scope.spawn(on_host).join().unwrap());
}

pub(crate) fn configure<T>(with: impl AsyncFnOnce(Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        with(netlink).await
    })
}

pub(crate) async fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

async fn up(netlink: &Handle, name: &str, addresses: &[(IpAddr, u8)]) {
    netlink.link().set(LinkUnspec::new_with_name(name).up().build()).execute().await.unwrap();
    for (address, prefix) in addresses.iter().filter(|(address, _)| address.is_ipv4() || has_ipv6()) {
        let mut add = netlink.address().add(index(name).await, *address, *prefix);
        if address.is_ipv6() {
            // It is there at once: nobody is asked whether it is free.
            add.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        add.execute().await.unwrap();
    }
}

pub(crate) async fn default_route(netlink: &Handle, gateway: IpAddr) {
    let route = match gateway {
        IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build(),
        IpAddr::V6(_) if !has_ipv6() => return,
        IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway).build(),
    };
    netlink.route().add(route).execute().await.unwrap();
}

/// Whether this kernel has IPv6. Without it, the world has IPv4 alone.
fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// Has a link that is not up yet give itself no address, and listen to no router: in the calling thread's namespace.
fn quiet_ipv6(link: &str) {
    for (setting, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")].into_iter().filter(|_| has_ipv6()) {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{setting}"), value).unwrap();
    }
}

async fn connect(netlink: &Handle, internet: &Namespace) {
    netlink.link().add(LinkVeth::new("host0", "inet0").build()).execute().await.unwrap();
    let move_away = LinkUnspec::new_with_name("inet0").setns_by_fd(internet.0.as_raw_fd()).build();
    netlink.link().set(move_away).execute().await.unwrap();
    up(netlink, "lo", &[]).await;
    quiet_ipv6("host0");
    up(netlink, "host0", &[(HOST.into(), 24), (HOST_V6.into(), 64)]).await;
    default_route(netlink, ROUTER.into()).await;
    default_route(netlink, ROUTER_V6.into()).await;
}

async fn be_the_internet(netlink: &Handle) {
    let v6 = INTERNET_V6.iter().map(|&address| (address.into(), 128));
    let addresses: Vec<_> = INTERNET.iter().map(|&address| (address.into(), 32)).chain(v6).collect();
    up(netlink, "lo", &addresses).await;
    quiet_ipv6("inet0");
    up(netlink, "inet0", &[(ROUTER.into(), 24), (ROUTER_V6.into(), 64)]).await;
    // So that whatever is not here is said to be so.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    if has_ipv6() {
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    }
}

impl World {
    /// A guest with a way out.
    pub(crate) fn guest(&self, policy: NetworkPolicy) -> (Guest, Egress) {
        self.guest_with(policy, Limits::default())
    }

    pub(crate) fn guest_with(&self, policy: NetworkPolicy, limits: Limits) -> (Guest, Egress) {
        let (slot, tap, gate) = Slot::create().unwrap();
        let egress = self.open(gate, policy, limits, &Budget::default());
        (Guest::plug(slot, tap), egress)
    }

    /// Another slot for a guest.
    pub(crate) fn plug_anew(&self, guest: &mut Guest) -> Egress {
        let (slot, tap, gate) = Slot::create().unwrap();
        guest.plug_into(slot, tap);
        self.open(gate, NetworkPolicy::default(), Limits::default(), &Budget::default())
    }

    /// One of several guests that share a budget.
    pub(crate) fn guest_of(&self, budget: &Budget) -> (Guest, Egress) {
        let (slot, tap, gate) = Slot::create().unwrap();
        let egress = self.open(gate, NetworkPolicy::default(), Limits::default(), budget);
        (Guest::plug(slot, tap), egress)
    }

    fn open(&self, gate: Gate, policy: NetworkPolicy, limits: Limits, budget: &Budget) -> Egress {
        self.way_out(policy).limits(limits).budget(budget).open(gate).unwrap()
    }

    /// A way out that asks this internet for names.
    pub(crate) fn way_out(&self, policy: NetworkPolicy) -> EgressBuilder {
        let names = Arc::new(Names::asking(vec![[8, 8, 8, 8].into()]));
        let refused = Arc::clone(&self.refused);
        let tell = move |what: &Refused| refused.lock().unwrap().push(what.clone());
        Egress::builder(policy, names).on_refusal(tell)
    }

    pub(crate) fn refusals(&self) -> Vec<Refused> {
        std::mem::take(&mut self.refused.lock().unwrap())
    }
}
