//! What all parts of one guest's way out know.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::egress::budget::Budget;
use crate::egress::counters::{Counters, Way};
use crate::egress::limits::Limits;
use crate::egress::names::Names;
use crate::egress::pace::{Bandwidth, Pace};
use crate::egress::sender::Sender;
use crate::own::is_own;
use crate::policy::{NetworkPolicy, Protocol, Refusal, Verdict, embedded};

/// One guest's way out.
pub(super) struct Shared {
    current: RwLock<Current>,
    pub(super) limits: Limits,
    pub(super) budget: Budget,
    pace: Mutex<Pace>,
    out: Option<Bandwidth>,
    into: Option<Bandwidth>,
    /// As all guests of the host share them.
    host_names: Arc<Names>,
    pub(super) sender: Sender,
    pub(super) counters: Counters,
    on_refusal: Option<OnRefusal>,
    /// The addresses that the guest was told, with the names that it had asked for.
    told: Mutex<HashMap<IpAddr, Vec<(String, Instant)>>>,
}

/// What is in force, until it changes.
struct Current {
    policy: Arc<NetworkPolicy>,
    route: Route,
    /// Those of the policy's servers, where it has some; else those that all guests share.
    names: Arc<Names>,
}

/// A way that connections leave by: those of another one may not go on. It changes with the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route(u64);

/// What is called for each refusal.
pub(super) type OnRefusal = Box<dyn Fn(&Refused) + Send + Sync>;

/// Something that a guest was refused.
///
/// ```
/// use std::sync::Arc;
///
/// use wrenn_net::{Egress, Names, NetworkPolicy, Refusal};
///
/// let builder = Egress::builder(NetworkPolicy::default(), Arc::new(Names::of_host())).on_refusal(|refused| {
///     if refused.refusal == Refusal::Private {
///         println!("a private network was to be reached: {:?}", refused.destination);
///     }
/// });
/// # drop(builder);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refused {
    /// The protocol; UDP for questions to DNS, and ICMP for echo requests.
    pub protocol: Protocol,
    /// What was to be reached.
    pub destination: Destination,
    /// Why it is not.
    pub refusal: Refusal,
}

/// What a guest wants to reach.
///
/// ```
/// use wrenn_net::Destination;
///
/// /// As a line of a log has it.
/// fn line(destination: &Destination) -> String {
///     match destination {
///         Destination::Address { address, .. } => address.to_string(),
///         Destination::Echo { address, .. } => format!("ping {address}"),
///         Destination::Name { name, .. } => format!("dns {name}"),
///         Destination::Service { name, port, .. } => format!("{name}:{port}"),
///         other => format!("{other:?}"),
///     }
/// }
/// # let _ = line;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Destination {
    /// An address and a port.
    #[non_exhaustive]
    Address {
        /// The address and the port.
        address: SocketAddr,
    },
    /// An address, by an echo request, which has no port.
    #[non_exhaustive]
    Echo {
        /// The address.
        address: IpAddr,
    },
    /// A name that DNS was asked for.
    #[non_exhaustive]
    Name {
        /// In lower case.
        name: String,
    },
    /// A name that a connection told, and the port.
    #[non_exhaustive]
    Service {
        /// In lower case.
        name: String,
        /// The port.
        port: u16,
    },
}

impl Shared {
    pub(super) fn new(
        policy: NetworkPolicy,
        names: Arc<Names>,
        sender: Sender,
        limits: Limits,
        budget: Budget,
    ) -> Self {
        let limits = limits.within(budget.of_one_guest());
        Self {
            current: RwLock::new(Current {
                names: names_of(&policy, &names, &names),
                policy: Arc::new(policy),
                route: Route(0),
            }),
            limits,
            budget,
            pace: Mutex::new(Pace::new(limits.begun_per_second)),
            out: limits.bytes_out_per_second.map(Bandwidth::new),
            into: limits.bytes_in_per_second.map(Bandwidth::new),
            host_names: names,
            sender,
            counters: Counters::default(),
            on_refusal: None,
            told: Mutex::default(),
        }
    }

    pub(super) fn tell(&mut self, on_refusal: OnRefusal) {
        self.on_refusal = Some(on_refusal);
    }

    /// Whether the guest may begin something more now.
    pub(super) fn may_begin(&self) -> bool {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).take() && self.budget.may_begin()
    }

    /// Counts bytes, and tells how long to wait before they, or those after them, are carried.
    pub(super) fn count(&self, way: Way, bytes: usize) -> Duration {
        self.counters.count_bytes(way, bytes);
        self.bandwidths(way).map(|bandwidth| bandwidth.take(bytes)).max().unwrap_or_default()
    }

    /// Counts bytes that are about to be carried, and waits until they may be.
    pub(super) async fn carry(&self, way: Way, bytes: usize) {
        let wait = self.count(way, bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Whether a datagram is carried; counted if it is. One that would have to wait is lost.
    pub(super) fn carries(&self, way: Way, bytes: usize) -> bool {
        let is_carried = self.bandwidths(way).all(|bandwidth| bandwidth.take_if_free(bytes));
        if is_carried {
            self.counters.count_bytes(way, bytes);
        }
        is_carried
    }

    /// How much to carry at a time.
    pub(super) fn piece(&self, way: Way) -> usize {
        self.bandwidths(way).map(Bandwidth::piece).min().unwrap_or(usize::MAX)
    }

    /// The guest's, and that of all guests.
    fn bandwidths(&self, way: Way) -> impl Iterator<Item = &Bandwidth> {
        let own = if way == Way::Out { &self.out } else { &self.into };
        own.as_ref().into_iter().chain(self.budget.bandwidth(way))
    }

    pub(super) fn policy(&self) -> Arc<NetworkPolicy> {
        self.current().0
    }

    /// The policy, and the way that connections leave by.
    pub(super) fn current(&self) -> (Arc<NetworkPolicy>, Route) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        (Arc::clone(&current.policy), current.route)
    }

    pub(super) fn set_policy(&self, policy: NetworkPolicy) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let is_other = policy.proxy() != current.policy.proxy();
        let route = Route(current.route.0 + u64::from(is_other));
        let names = names_of(&policy, &self.host_names, &current.names);
        *current = Current { policy: Arc::new(policy), route, names };
    }

    /// Who resolves names for this guest.
    pub(super) fn names(&self) -> Arc<Names> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).names)
    }

    /// Why a datagram of this verdict is not sent: a proxy carries TCP alone, and nothing goes around it. `is_named` tells
    /// whether the guest was told the address for a name by which it may be reached.
    pub(super) fn refusal_of_datagram(&self, verdict: Verdict, is_named: impl FnOnce() -> bool) -> Option<Refusal> {
        match verdict {
            Verdict::Refused(refusal) => Some(refusal),
            // What goes by UDP or ICMP tells no name that could be read; but the guest has asked for it.
            Verdict::Named if !is_named() => Some(Refusal::Name),
            Verdict::Named | Verdict::Reached => self.policy().proxy().map(|_| Refusal::NotByProxy),
        }
    }

    /// What the policy says of an address.
    pub(super) fn of_address(&self, protocol: Protocol, to: SocketAddr) -> Verdict {
        self.policy().of_address(protocol, to.ip(), to.port(), is_hosts(to.ip()))
    }

    /// Whether a guest may be told an address by DNS: whether any policy for any port could let it be reached there.
    pub(super) fn may_be_meant(&self, address: IpAddr) -> bool {
        self.policy().may_mean(address) && !is_hosts(address)
    }

    /// Whether the guest may be told IPv6 addresses: it has IPv6, and the host has a way to them.
    pub(super) fn has_ipv6(&self) -> bool {
        self.sender.has_ipv6 && self.host_names.has_ipv6()
    }

    /// Of the names that led the guest to an address, one by which it may be reached.
    pub(super) fn name_told(&self, protocol: Protocol, to: SocketAddr) -> Option<String> {
        let policy = self.policy();
        // It was told by the policy of then.
        if !policy.may_mean_by_name(protocol, to.ip(), to.port()) {
            return None;
        }
        let told = self.told();
        let names = told.get(&to.ip())?;
        let is_good =
            |name: &&(String, Instant)| name.1 > Instant::now() && policy.has_name(protocol, &name.0, to.port());
        names.iter().find(is_good).map(|(name, _)| name.clone())
    }

    /// Remembers that the guest was told an address.
    pub(super) fn remember(&self, address: IpAddr, name: &str, until: Instant) {
        let mut told = self.told();
        if told.len() >= ADDRESSES_MAX && !told.contains_key(&address) {
            told.retain(|_, names| names.iter().any(|(_, until)| *until > Instant::now()));
            // A guest that asks for so much gets what it asked for first.
            if told.len() >= ADDRESSES_MAX {
                return;
            }
        }
        let names = told.entry(address).or_default();
        names.retain(|(known, _)| known != name);
        if names.len() < NAMES_MAX {
            names.push((name.to_owned(), until));
        }
    }

    /// Counts a refusal, and tells whoever wants to know.
    pub(super) fn refuse(&self, destination: &Destination, protocol: Protocol, refusal: Refusal) {
        self.counters.count_refusal();
        tracing::debug!(?protocol, ?destination, ?refusal, "refused");
        if let Some(tell) = &self.on_refusal {
            tell(&Refused { protocol, destination: destination.clone(), refusal });
        }
    }

    fn told(&self) -> MutexGuard<'_, HashMap<IpAddr, Vec<(String, Instant)>>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The names for a guest with this policy. Answers that are kept stay so where the `current` ones have the same servers.
fn names_of(policy: &NetworkPolicy, host_names: &Arc<Names>, current: &Arc<Names>) -> Arc<Names> {
    let servers = policy.dns_servers().unwrap_or_default();
    if servers.is_empty() {
        return Arc::clone(host_names);
    }
    let (asked, left): (Vec<IpAddr>, Vec<IpAddr>) =
        servers.iter().copied().partition(|&server| policy.may_ask_server(server) && !is_hosts(server));
    if !left.is_empty() {
        tracing::warn!(?left, "DNS servers of a policy are not asked: they are the host's, or in a private network");
    }
    if current.asks(&asked) { Arc::clone(current) } else { Arc::new(Names::asking(asked)) }
}

/// Whether an address is the host's own, or stands for one that is.
pub(super) fn is_hosts(address: IpAddr) -> bool {
    is_own(address) || is_own(embedded(address))
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).field("counters", &self.counters).finish_non_exhaustive()
    }
}

/// Some hundred bytes each.
const ADDRESSES_MAX: usize = 4096;
/// Of one address: many names share those of a content delivery network.
const NAMES_MAX: usize = 32;
