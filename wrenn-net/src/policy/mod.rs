//! What a guest may reach.
//!
//! ```text
//! local? ─▶ refused     allowed by address ─▶ reached     private? ─▶ refused
//!                       denied? or closed? ─▶ named, where a name is allowed; else refused
//!                       else ─▶ reached
//! ```

mod address;
mod entry;
mod error;
mod proxy;
mod refusal;
mod rule;
#[cfg(test)]
mod tests;
mod value;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use entry::{PolicyEntry, Protocol};
pub use error::PolicyError;
pub use proxy::UpstreamProxy;
pub use refusal::{ProxyFault, Refusal};
pub use rule::Rule;

pub(crate) use address::embedded;
pub(crate) use proxy::{Credentials, ProxyProtocol};
pub(crate) use rule::carries;
pub(crate) use value::Value;

use address::Realm;

/// What a guest may reach. By default that is the public internet, and nothing else: no private network, no link, no metadata
/// service, no other sandbox, and not the host.
///
/// An address is looked up in this order: what is allowed is reached, what is denied is not, and of the rest the public
/// internet is. A name is allowed by itself: the connection then has to tell that name (by TLS, HTTP or the guest's own
/// question to DNS), and wrenn resolves it and connects to it, whatever address the guest had in mind.
///
/// A private network is reached where an entry names that network or a part of it; `*` and `0.0.0.0/0` do not. Addresses of
/// the host, its loopback and its link are never reached.
///
/// ```
/// use wrenn_net::NetworkPolicy;
///
/// # fn main() -> Result<(), wrenn_net::PolicyError> {
/// // The public internet, and a database in a private network.
/// let open = NetworkPolicy::default().allow(["tcp://10.2.0.7:5432"])?;
/// // Nothing but a package index.
/// let closed = NetworkPolicy::closed().allow(["pypi.org:443", "*.pythonhosted.org:443"])?;
/// # assert_ne!(open, closed);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    allow: Vec<PolicyEntry>,
    deny: Vec<PolicyEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<Rule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<UpstreamProxy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns_servers: Option<Vec<IpAddr>>,
}

/// What a policy says of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Reached,
    /// By a name alone.
    Named,
    Refused(Refusal),
}

impl NetworkPolicy {
    /// Nothing is reached but what is allowed.
    #[must_use]
    pub fn closed() -> Self {
        Self { deny: EVERYTHING.parse().into_iter().collect(), ..Self::default() }
    }

    /// Adds what is reached in any case.
    ///
    /// # Errors
    /// An entry is not [written like one](PolicyEntry).
    pub fn allow(mut self, entries: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, PolicyError> {
        for entry in entries {
            self.allow.push(entry.as_ref().parse()?);
        }
        Ok(self)
    }

    /// Adds what is not reached unless it is allowed.
    ///
    /// # Errors
    /// An entry is not [written like one](PolicyEntry), or is a name.
    pub fn deny(mut self, entries: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, PolicyError> {
        for entry in entries {
            self.deny.push(entry.as_ref().parse()?);
        }
        match self.deny.iter().find(|entry| entry.is_name()) {
            Some(name) => Err(PolicyError::DeniedName { entry: name.to_string() }),
            None => Ok(self),
        }
    }

    /// Adds what is put into requests on their way out. It lets nothing through by itself.
    ///
    /// # Errors
    /// The rule sets and replaces nothing; or there are more than 64.
    pub fn rule(mut self, rule: Rule) -> Result<Self, PolicyError> {
        self.rules.push(rule);
        self.check_rules().map(|()| self)
    }

    /// Has all TCP that the policy lets through leave by a proxy. What is reached is decided as without one, by the addresses
    /// that wrenn resolves, and the proxy is told addresses. Nothing goes around it: UDP and echo requests are refused, and
    /// wrenn goes on to answer questions to DNS from the host's own network.
    ///
    /// ```
    /// use wrenn_net::{NetworkPolicy, UpstreamProxy};
    ///
    /// # fn main() -> Result<(), wrenn_net::PolicyError> {
    /// let proxy = UpstreamProxy::of("socks5://proxy.example:1080")?.credentials("ada", "${secret.PROXY_PASSWORD}")?;
    /// let policy = NetworkPolicy::default().through(proxy);
    /// # assert!(policy.proxy().is_some());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn through(mut self, proxy: UpstreamProxy) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// The proxy by which connections leave.
    #[must_use]
    pub fn proxy(&self) -> Option<&UpstreamProxy> {
        self.proxy.as_ref()
    }

    /// The DNS servers that wrenn asks for this guest, in place of the host's: 10 at most, by UDP and TCP at port 53, from the
    /// host's own network. The guest goes on to ask any server, and wrenn to answer. With no server at all the guest's
    /// questions are refused, and names that a connection tells are still resolved by the host's servers.
    ///
    /// A server in a private network is asked where [`allow`](Self::allow) names port 53 of it; one on the host, its loopback
    /// or its link never is. [`deny`](Self::deny) says nothing of them. Default: the host's servers. It costs a cache of its own for
    /// the guest: some hundred bytes for each name, and 4096 names at most.
    ///
    /// ```
    /// use wrenn_net::NetworkPolicy;
    ///
    /// # fn main() -> Result<(), wrenn_net::PolicyError> {
    /// let policy = NetworkPolicy::default().with_dns_servers([[9, 9, 9, 9].into()]);
    /// policy.check()?;
    /// let inside = NetworkPolicy::default().with_dns_servers([[10, 2, 0, 53].into()]);
    /// assert!(inside.check().is_err());
    /// inside.allow(["10.2.0.53:53"])?.check()?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_dns_servers(mut self, servers: impl IntoIterator<Item = IpAddr>) -> Self {
        self.dns_servers = Some(servers.into_iter().collect());
        self
    }

    /// The DNS servers that are asked in place of the host's; `None` where the host's are.
    #[must_use]
    pub fn dns_servers(&self) -> Option<&[IpAddr]> {
        self.dns_servers.as_deref()
    }

    /// What is put into requests on their way out.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What is reached in any case.
    #[must_use]
    pub fn allowed(&self) -> &[PolicyEntry] {
        &self.allow
    }

    /// What is not reached unless it is allowed.
    #[must_use]
    pub fn denied(&self) -> &[PolicyEntry] {
        &self.deny
    }

    /// Whether each entry has an effect.
    ///
    /// # Errors
    /// A name is denied; or names are allowed, and everything is reached as well; or a rule sets and replaces nothing; or a DNS
    /// server [may not be asked](Self::with_dns_servers), or there are too many of them; or a proxy that is
    /// [held to the policy](UpstreamProxy::held_to_policy) is at an address that the policy does not let it be at.
    pub fn check(&self) -> Result<(), PolicyError> {
        self.check_rules()?;
        self.check_dns_servers()?;
        self.check_proxy()?;
        if let Some(name) = self.deny.iter().find(|entry| entry.is_name()) {
            return Err(PolicyError::DeniedName { entry: name.to_string() });
        }
        match self.allow.iter().find(|entry| entry.is_name()) {
            Some(name) if self.deny.is_empty() => Err(PolicyError::NameWithoutDeny { entry: name.to_string() }),
            _ => Ok(()),
        }
    }

    fn check_rules(&self) -> Result<(), PolicyError> {
        if self.rules.len() > RULES_MAX {
            return Err(PolicyError::Rules { max: RULES_MAX });
        }
        self.rules.iter().try_for_each(Rule::check)
    }

    fn check_dns_servers(&self) -> Result<(), PolicyError> {
        let servers = self.dns_servers.as_deref().unwrap_or_default();
        if servers.len() > DNS_SERVERS_MAX {
            return Err(PolicyError::DnsServers { max: DNS_SERVERS_MAX });
        }
        match servers.iter().find(|&&server| !self.may_ask_server(server)) {
            Some(&server) => Err(PolicyError::DnsServer { server, why: why_not_asked(address::realm(server)) }),
            None => Ok(()),
        }
    }

    fn check_proxy(&self) -> Result<(), PolicyError> {
        let Some((proxy, address)) = self.proxy.as_ref().and_then(|proxy| Some((proxy, proxy.host().parse().ok()?)))
        else {
            return Ok(());
        };
        match (self.may_reach_proxy(proxy, address), address::realm(address)) {
            (true, _) => Ok(()),
            (false, Realm::Local) => Err(PolicyError::Proxy { why: LOCAL_PROXY }),
            (false, Realm::Private | Realm::Public) => Err(PolicyError::Proxy { why: PRIVATE_PROXY }),
        }
    }

    /// Whether a proxy may be reached at an address. Whether that is the host's own is for others to say.
    pub(crate) fn may_reach_proxy(&self, proxy: &UpstreamProxy, address: IpAddr) -> bool {
        !proxy.is_held_to_policy() || self.may_mean_by_name(Protocol::Tcp, address, proxy.port())
    }

    /// Whether a DNS server may be asked for the guest. Whether it is the host's own is for others to say.
    pub(crate) fn may_ask_server(&self, server: IpAddr) -> bool {
        let may_mean = |protocol| self.may_mean_by_name(protocol, server, DNS_PORT);
        may_mean(Protocol::Udp) && may_mean(Protocol::Tcp)
    }

    /// Whether there are rules for any name at this port.
    pub(crate) fn has_rules_at(&self, port: u16) -> bool {
        self.rules.iter().any(|rule| rule.has_port(port))
    }

    /// The rules for a name, which is in lower case: those for the name itself, else those for the longest that it is below.
    pub(crate) fn rules_of(&self, name: &str, port: u16) -> impl Iterator<Item = &Rule> {
        let closeness = move |rule: &Rule| if rule.has_port(port) { rule.closeness(name) } else { None };
        let closest = self.rules.iter().filter_map(closeness).max();
        self.rules.iter().filter(move |rule| closest.is_some() && closeness(rule) == closest)
    }

    /// What becomes of a connection or a datagram to an address. `is_own` tells the host's addresses.
    pub(crate) fn of_address(&self, protocol: Protocol, address: IpAddr, port: u16, is_own: bool) -> Verdict {
        let realm = address::realm(address);
        if realm == Realm::Local || is_own {
            return Verdict::Refused(Refusal::Local);
        }
        let has = |entry: &&PolicyEntry| entry.has_address(protocol, address, port);
        let may_be_meant = |entry: &&PolicyEntry| realm == Realm::Public || entry.is_private();
        if self.allow.iter().filter(may_be_meant).any(|entry| has(&entry)) {
            return Verdict::Reached;
        }
        let denied = self.deny.iter().find(has);
        let refusal = match (denied, realm) {
            (None, Realm::Public) => return Verdict::Reached,
            // The guest may think that a name is there, by a file of its own.
            (Some(entry), _) => Refusal::Denied(entry.clone()),
            (None, _) => Refusal::Private,
        };
        let is_named = |entry: &PolicyEntry| entry.is_name() && entry.has_port(protocol, port);
        match self.allow.iter().any(is_named) {
            true => Verdict::Named,
            false => Verdict::Refused(refusal),
        }
    }

    /// Whether a name is allowed by itself.
    pub(crate) fn has_name(&self, protocol: Protocol, name: &str, port: u16) -> bool {
        self.allow.iter().any(|entry| entry.has_name(name) && entry.has_port(protocol, port))
    }

    /// Whether an address may be what an allowed name leads to: it is public, or in a private network that is allowed.
    pub(crate) fn may_mean(&self, address: IpAddr) -> bool {
        self.may_mean_at(address, PolicyEntry::has_address_at_all)
    }

    /// As [`may_mean`](Self::may_mean), for one port of it.
    pub(crate) fn may_mean_by_name(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        self.may_mean_at(address, |entry, address| entry.has_address(protocol, address, port))
    }

    fn may_mean_at(&self, address: IpAddr, has: impl Fn(&PolicyEntry, IpAddr) -> bool) -> bool {
        match address::realm(address) {
            Realm::Public => true,
            Realm::Private => self.allow.iter().any(|entry| entry.is_private() && has(entry, address)),
            Realm::Local => false,
        }
    }

    /// Whether DNS may be asked for a name: where everything is denied, only for those that are allowed, since a question
    /// to DNS carries what a guest puts into it.
    pub(crate) fn may_ask(&self, name: &str) -> bool {
        let is_closed = self.deny.iter().any(PolicyEntry::is_everything);
        !is_closed || self.allow.iter().any(|entry| entry.has_name(name))
    }
}

fn why_not_asked(realm: Realm) -> &'static str {
    match realm {
        Realm::Local => "it is on the host, its loopback or its link, or of many: take one that is elsewhere",
        Realm::Private | Realm::Public => {
            "it is in a private network: allow port 53 of it as well, or take a public one"
        }
    }
}

const EVERYTHING: &str = "*";
const LOCAL_PROXY: &str =
    "its address is on the host, its loopback or its link, or of many: take one that is elsewhere";
const PRIVATE_PROXY: &str =
    "its address is in a private network: allow that address with the proxy's port as well, or take a public one";
const RULES_MAX: usize = 64;
const DNS_SERVERS_MAX: usize = 10;
const DNS_PORT: u16 = 53;
