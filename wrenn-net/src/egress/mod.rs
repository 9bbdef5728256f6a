//! A guest's way out.
//!
//! ```text
//!  guest ─▶ tap ─▶ the slot's namespace: the gate ─▶ this program: policy ─▶ a socket of the host's own
//!                       TCP    tcp, connections, sniff, dial, relay; intercept, where rules put something into requests;
//!                              proxy, where the policy names one
//!                       UDP    udp, flows
//!                       ICMP   echo, echo_socket, flows
//!                       DNS    dns, names, kept_file, ipv6
//! ```
//!
//! There is no route, no address translation and no rule on the host: the slot's namespace ends each connection of the
//! guest's, and this program makes one of its own. So what is reached is decided here, for each connection.

mod both;
mod budget;
mod connections;
mod counters;
mod dial;
mod dialled;
mod dns;
mod echo;
mod echo_socket;
mod flows;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod intercept;
mod ipv6;
mod kept_file;
mod limits;
mod names;
mod pace;
mod proxy;
mod relay;
mod secret;
mod sender;
mod servers;
mod shared;
mod sniff;
mod tcp;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use budget::Budget;
pub use counters::EgressCounters;
pub use intercept::{Authority, Interceptor};
pub use limits::Limits;
pub use names::Names;
pub use secret::{Secret, SecretFuture, SecretSource};
pub use shared::{Destination, Refused};

pub use connections::OpenConnection;

use both::{Both, Watched};
use connections::{Connections, Open};
use intercept::Interception;
use sender::Sender;
use shared::Shared;
use tcp::Tcp;

use crate::error::NetError;
use crate::gate::Gate;
use crate::packet;
use crate::policy::{NetworkPolicy, Protocol, Verdict};
use crate::slot::guest_address;
use crate::sys;

/// A guest's way out, which is open for as long as this is there. Dropping it resets each of the guest's connections, at both
/// of their ends.
///
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
///
/// use wrenn_net::{Egress, Names, NetworkPolicy, Slot};
///
/// let (slot, tap, gate) = Slot::create()?;
/// let names = Arc::new(Names::of_host());
/// let egress = Egress::builder(NetworkPolicy::default(), names).open(gate)?;
/// // … a guest runs …
/// egress.set_policy(NetworkPolicy::closed().allow(["pypi.org:443"])?);
/// # drop((slot, tap));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Egress {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    changed: watch::Sender<()>,
    tasks: [JoinHandle<()>; 3],
}

/// How a way out is opened, made by [`Egress::builder`].
pub struct EgressBuilder {
    policy: NetworkPolicy,
    names: Arc<Names>,
    limits: Limits,
    budget: Option<Budget>,
    on_refusal: Option<shared::OnRefusal>,
    interception: Option<Interception>,
}

impl Egress {
    /// A way out to what `policy` lets through. `names` answers the guest's questions to DNS.
    #[must_use]
    pub fn builder(policy: NetworkPolicy, names: Arc<Names>) -> EgressBuilder {
        EgressBuilder { policy, names, limits: Limits::default(), budget: None, on_refusal: None, interception: None }
    }

    /// Changes what is reached, at once: connections and flows that the new policy does not let through are reset, and all of
    /// them where it names another [proxy](NetworkPolicy::through).
    pub fn set_policy(&self, policy: NetworkPolicy) {
        self.shared.set_policy(policy);
        self.connections.sift(|open| may_stay(&self.shared, open));
        self.changed.send(()).ok();
    }

    /// What is reached now.
    #[must_use]
    pub fn policy(&self) -> Arc<NetworkPolicy> {
        self.shared.policy()
    }

    /// The TCP connections that are open now.
    #[must_use]
    pub fn connections(&self) -> Vec<OpenConnection> {
        self.connections.open()
    }

    /// Resets connections that the guest has, and this way out does not: those of the guest that this one is a copy of.
    /// Otherwise a program of the guest's that only reads from one would wait for ever.
    pub fn reset(&self, connections: &[OpenConnection]) {
        for OpenConnection { guest_port, to } in connections {
            let guest = SocketAddr::new(guest_address(to.ip()), *guest_port);
            // The guest answers with the number that it waits for, by which the slot's kernel resets the connection.
            let provocation = packet::provocation(*to, guest);
            self.shared.sender.to_guest(&provocation);
        }
    }

    /// Whether the guest has IPv6: its slot's kernel has all that it takes. What is reached by it is another matter, and takes
    /// a way out of the host's.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.shared.sender.has_ipv6
    }

    /// What it has carried so far.
    #[must_use]
    pub fn counters(&self) -> EgressCounters {
        self.shared.counters.report(self.connections.open_count())
    }
}

fn may_stay(shared: &Shared, open: &Open) -> bool {
    if open.to.port() == DNS_PORT {
        return true;
    }
    let (policy, route) = shared.current();
    if open.route != route {
        return false;
    }
    let is_named = || open.name.as_ref().is_some_and(|name| policy.has_name(Protocol::Tcp, name, open.to.port()));
    let is_reached = |to| shared.of_address(Protocol::Tcp, to) == Verdict::Reached;
    match shared.of_address(Protocol::Tcp, open.to) {
        Verdict::Reached => open.led_to.is_none_or(is_reached) || is_named(),
        Verdict::Named => is_named(),
        Verdict::Refused(_) => false,
    }
}

impl EgressBuilder {
    /// How much the guest may have at once. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What it shares with the ways out of other guests. Default: a [`Budget::default`] of its own.
    #[must_use]
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// What is called for each thing that the guest is refused. It has to be quick, since the guest's packets wait for it.
    #[must_use]
    pub fn on_refusal(mut self, tell: impl Fn(&Refused) + Send + Sync + 'static) -> Self {
        self.on_refusal = Some(Box::new(tell));
        self
    }

    /// What follows the policy's [rules](crate::Rule), and where the guest's secrets come from, those of its
    /// [proxy](NetworkPolicy::through) too. The guest has to trust the interceptor's authority. Default: nothing, and rules
    /// are not followed; there are no secrets, and a proxy has to be certified by this host's authorities or its own.
    #[must_use]
    pub fn intercept(mut self, interceptor: Arc<Interceptor>, secrets: impl SecretSource + 'static) -> Self {
        self.interception = Some(Interception { interceptor, secrets: Arc::new(secrets) });
        self
    }

    /// Opens it. Connections are made from the network namespace of the runtime's threads, so from the host's.
    ///
    /// # Errors
    /// A socket cannot be watched.
    ///
    /// # Panics
    /// If it is called outside of a tokio runtime.
    pub fn open(self, gate: Gate) -> Result<Egress, NetError> {
        let watched = |error: io::Error| NetError::at("watch the slot's sockets")(error);
        let packets = Arc::new(gate.packets);
        let firsts = sys::watch_packets(Arc::clone(&packets)).map_err(watched)?;
        let v4 = Watched::new(gate.v4).map_err(watched)?;
        let v6 = gate.v6.map(Watched::new).transpose().map_err(watched)?;
        let sender = Sender { packets, tap: gate.tap, has_ipv6: v6.is_some() };
        let mut shared = Shared::new(self.policy, self.names, sender, self.limits, self.budget.unwrap_or_default());
        if let Some(tell) = self.on_refusal {
            shared.tell(tell);
        }
        let (shared, connections) = (Arc::new(shared), Arc::new(Connections::default()));
        let (changed, receiver) = watch::channel(());
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        let (v6_listener, v6_datagrams) = v6.map(|Watched { listener, datagrams }| (listener, datagrams)).unzip();
        let listeners = Both { v4: v4.listener, v6: v6_listener };
        let datagrams = Both { v4: v4.datagrams, v6: v6_datagrams };
        let tcp =
            Tcp::new(Arc::clone(&shared), Arc::clone(&connections), self.interception).serve(firsts, sender, listeners);
        let udp = udp::serve(Arc::clone(&shared), datagrams, receiver.clone());
        let echo = echo::serve(Arc::clone(&shared), requests, receiver);
        // Requests come for as long as there is TCP, whose end tells why.
        let tasks = [tokio::spawn(ended("TCP", tcp)), tokio::spawn(ended("UDP", udp)), tokio::spawn(echo)];
        Ok(Egress { shared, connections, changed, tasks })
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl std::fmt::Debug for EgressBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EgressBuilder")
            .field("policy", &self.policy)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

async fn ended(what: &'static str, serving: impl Future<Output = io::Error>) {
    let error = serving.await;
    tracing::warn!(%error, what, "a guest's way out ended");
}

const DNS_PORT: u16 = 53;
/// Echo requests that wait, which have an Ethernet frame each at the most.
const REQUESTS_MAX: usize = 64;
