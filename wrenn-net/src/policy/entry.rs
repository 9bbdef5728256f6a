//! One entry of a policy: what it names, by address or by name.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::policy::address;
use crate::policy::error::PolicyError;

/// A protocol that a policy can tell apart.
///
/// ```
/// use wrenn_net::Protocol;
///
/// /// As an entry of a policy has it.
/// fn scheme(protocol: Protocol) -> Option<&'static str> {
///     match protocol {
///         Protocol::Tcp => Some("tcp://"),
///         Protocol::Udp => Some("udp://"),
///         Protocol::Icmp => Some("icmp://"),
///         _ => None,
///     }
/// }
/// assert_eq!(scheme(Protocol::Icmp), Some("icmp://"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP, and what goes over it, such as QUIC.
    Udp,
    /// ICMP, of which echo requests (`ping`) are carried. They have no port.
    Icmp,
}

/// What an entry of a [`NetworkPolicy`](crate::NetworkPolicy) names: `[tcp://|udp://|icmp://]HOST[:PORT[-PORT]]`.
/// Echo requests (`ping`) are of `icmp` and have no port, so an entry with a port is not about them.
///
/// The host is an address (`93.184.216.34`), a range of addresses (`10.2.0.0/16`), a name (`api.example.com`), every name
/// below one and not that one (`*.example.com`), or everything (`*`). An IPv6 address is in brackets where a port follows.
/// `0.0.0.0/0` is everything as well, of IPv6 too; `::/0` is IPv6 alone.
///
/// ```
/// use wrenn_net::PolicyEntry;
///
/// for text in ["93.184.216.34", "10.2.0.0/16:5432", "tcp://api.example.com:443", "*.example.com", "udp://*:123"] {
///     assert_eq!(text.parse::<PolicyEntry>().unwrap().to_string(), text);
/// }
/// assert!("10.2.0.0/33".parse::<PolicyEntry>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyEntry {
    protocol: Option<Protocol>,
    host: Host,
    ports: Option<RangeInclusive<u16>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Everything,
    Network(IpNet),
    Name(String),
    /// Without the asterisk and the dot.
    Below(String),
}

impl PolicyEntry {
    /// Whether it is a name, and not an address.
    #[must_use]
    pub fn is_name(&self) -> bool {
        matches!(self.host, Host::Name(_) | Host::Below(_))
    }

    /// Whether it names every address, with every port.
    pub(crate) fn is_everything(&self) -> bool {
        let is_wide = match &self.host {
            Host::Everything => true,
            Host::Network(network @ IpNet::V4(_)) => network.prefix_len() == 0,
            Host::Network(IpNet::V6(_)) | Host::Name(_) | Host::Below(_) => false,
        };
        is_wide && self.protocol.is_none() && self.ports.is_none()
    }

    /// Whether it names this address.
    pub(crate) fn has_address(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        self.has_address_at_all(address) && self.has_port(protocol, port)
    }

    /// Whether it names this address, with whatever protocol and port.
    pub(crate) fn has_address_at_all(&self, address: IpAddr) -> bool {
        match &self.host {
            Host::Everything => true,
            // Whoever has written `0.0.0.0/0` has meant everything.
            Host::Network(IpNet::V4(network)) if network.prefix_len() == 0 => true,
            Host::Network(network) => network.contains(&address) || network.contains(&address::embedded(address)),
            Host::Name(_) | Host::Below(_) => false,
        }
    }

    /// Whether it names a network that is private throughout.
    pub(crate) fn is_private(&self) -> bool {
        matches!(&self.host, Host::Network(network) if address::is_private(network))
    }

    /// Whether it names this name, which is in lower case.
    pub(crate) fn has_name(&self, name: &str) -> bool {
        match &self.host {
            Host::Name(own) => own == name,
            // A dot with a backslash is within a label: `a\.example.com` is below `com`.
            Host::Below(own) => name
                .strip_suffix(own.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.') && !rest.ends_with("\\.")),
            Host::Everything | Host::Network(_) => false,
        }
    }

    /// How closely it names this name, which is in lower case; `None` where it does not. The name itself is closest.
    pub(crate) fn closeness(&self, name: &str) -> Option<usize> {
        let closeness = match &self.host {
            Host::Below(own) => own.len(),
            Host::Name(_) | Host::Everything | Host::Network(_) => usize::MAX,
        };
        self.has_name(name).then_some(closeness)
    }

    /// Whether it is about every port of its host.
    pub(crate) fn has_any_port(&self) -> bool {
        self.ports.is_none()
    }

    /// Whether it is about this protocol.
    pub(crate) fn has_protocol(&self, protocol: Protocol) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
    }

    /// Whether it is about this port of its host. What has no port has 0 here, which is in no entry.
    pub(crate) fn has_port(&self, protocol: Protocol, port: u16) -> bool {
        self.has_protocol(protocol) && self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }
}

impl FromStr for PolicyEntry {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let wrong = |why: &'static str| PolicyError::entry(text, why);
        let (protocol, rest) = match text.split_once("://") {
            Some(("tcp", rest)) => (Some(Protocol::Tcp), rest),
            Some(("udp", rest)) => (Some(Protocol::Udp), rest),
            Some(("icmp", rest)) => (Some(Protocol::Icmp), rest),
            Some(_) => return Err(wrong("the protocol is `tcp://`, `udp://` or `icmp://`, or is left out")),
            None => (None, text),
        };
        let (host, ports) = split_ports(rest).ok_or_else(|| wrong("an IPv6 address with a port is in brackets"))?;
        let ports = ports.map(ports_of).transpose().map_err(wrong)?;
        if protocol == Some(Protocol::Icmp) && ports.is_some() {
            return Err(wrong("ICMP has no ports"));
        }
        Ok(Self { protocol, host: host_of(host).map_err(wrong)?, ports })
    }
}

/// The host, and what follows its colon.
fn split_ports(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(ports) => Some((host, Some(ports))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    Some(match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => (text, None),
        Some((host, ports)) => (host, Some(ports)),
        None => (text, None),
    })
}

fn ports_of(text: &str) -> Result<RangeInclusive<u16>, &'static str> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port =
        |text: &str| text.parse().ok().filter(|&port: &u16| port > 0).ok_or("a port is a number from 1 to 65535");
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err("the first port of a range is above its last");
    }
    Ok(first..=last)
}

fn host_of(text: &str) -> Result<Host, &'static str> {
    if text == "*" {
        return Ok(Host::Everything);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Host::Network(address.into()));
    }
    if text.contains('/') {
        let network: IpNet = text.parse().map_err(|_| "a range is an address, a slash and a length: 10.2.0.0/16")?;
        return match network.trunc() == network {
            true => Ok(Host::Network(network)),
            false => Err("the address of a range has bits beyond its length"),
        };
    }
    match text.strip_prefix("*.") {
        Some(name) => name_of(name).map(Host::Below),
        None => name_of(text).map(Host::Name),
    }
}

/// A name as DNS has it, in lower case.
pub(super) fn name_of(text: &str) -> Result<String, &'static str> {
    if !text.is_ascii() {
        return Err("a name with other letters is written as DNS has it: `xn--…`");
    }
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    if text.len() > 253 || !text.split('.').all(is_label) || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(
            "it is neither an address nor a name: `93.184.216.34`, `10.2.0.0/16`, `example.com` or `*.example.com`",
        );
    }
    Ok(text.to_ascii_lowercase())
}

impl TryFrom<String> for PolicyEntry {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<PolicyEntry> for String {
    fn from(entry: PolicyEntry) -> Self {
        entry.to_string()
    }
}

impl fmt::Display for PolicyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(Protocol::Tcp) => f.write_str("tcp://")?,
            Some(Protocol::Udp) => f.write_str("udp://")?,
            Some(Protocol::Icmp) => f.write_str("icmp://")?,
            None => {}
        }
        let is_single = |network: &IpNet| network.prefix_len() == network.max_prefix_len();
        match (&self.host, &self.ports) {
            (Host::Everything, _) => f.write_str("*")?,
            (Host::Network(IpNet::V6(network)), Some(_)) if is_single(&(*network).into()) => {
                write!(f, "[{}]", network.addr())?;
            }
            (Host::Network(network @ IpNet::V6(_)), Some(_)) => write!(f, "[{network}]")?,
            (Host::Network(network), _) if is_single(network) => write!(f, "{}", network.addr())?,
            (Host::Network(network), _) => write!(f, "{network}")?,
            (Host::Name(name), _) => f.write_str(name)?,
            (Host::Below(name), _) => write!(f, "*.{name}")?,
        }
        match &self.ports {
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> PolicyEntry {
        text.parse().expect("an entry")
    }

    #[test]
    fn what_is_written_is_read_and_written_again() {
        for text in [
            "8.8.8.8",
            "udp://8.8.8.8:53",
            "icmp://8.8.8.8",
            "10.0.0.0/8:1-1024",
            "[2606:2800::1]:443",
            "[2606:2800::/32]:443",
            "2606:2800::/32",
            "*",
            "*:25",
            "example.com",
            "*.example.com:443",
        ] {
            assert_eq!(entry(text).to_string(), text);
        }
        assert_eq!(entry("EXAMPLE.Com").to_string(), "example.com");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_text() {
        for (text, says) in [
            ("10.0.0.0/33", "10.2.0.0/16"),
            ("10.0.0.1/8", "beyond its length"),
            ("icmp://8.8.8.8:53", "no ports"),
            ("sctp://8.8.8.8", "tcp://"),
            ("example.com:0", "1 to 65535"),
            ("example.com:65536", "1 to 65535"),
            ("example.com:20-10", "above its last"),
            ("bücher.example", "xn--"),
            ("", "neither"),
            ("a..b", "neither"),
            ("-a.example", "neither"),
            ("999.1.1.1", "neither"),
            ("*.", "neither"),
            ("**", "neither"),
            ("a.*.example", "neither"),
            ("[::1", "brackets"),
            ("[::1]443", "brackets"),
        ] {
            let error = text.parse::<PolicyEntry>().expect_err(text).to_string();
            assert!(error.contains(says) && error.contains(&format!("`{text}`")), "{text}: {error}");
        }
    }

    #[test]
    fn an_asterisk_is_what_is_below_and_never_the_name_itself() {
        let below = entry("*.example.com");
        for (name, is) in [
            ("a.example.com", true),
            ("a.b.example.com", true),
            ("example.com", false),
            ("badexample.com", false),
            (r"a\.example.com", false),
        ] {
            assert_eq!(below.has_name(name), is, "{name}");
        }
        assert!(entry("example.com").has_name("example.com") && !entry("example.com").has_name("a.example.com"));
    }
}
