//! Why something is not reached.

use serde::Serialize;

use crate::policy::entry::PolicyEntry;

/// Why something is not reached.
///
/// ```
/// use wrenn_net::Refusal;
///
/// /// What lets it be reached, where something does.
/// fn remedy(refusal: &Refusal) -> Option<String> {
///     match refusal {
///         Refusal::Private => Some("allow its network".to_owned()),
///         Refusal::Denied(entry) => Some(format!("do not deny `{entry}`")),
///         _ => None,
///     }
/// }
///
/// let denied = Refusal::Denied("93.184.216.0/24".parse()?);
/// assert_eq!(remedy(&denied).as_deref(), Some("do not deny `93.184.216.0/24`"));
/// assert_eq!(remedy(&Refusal::Local), None);
/// # Ok::<(), wrenn_net::PolicyError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// The address is the host's own, or on its loopback or its link, or of many.
    Local,
    /// The address is in a private network that the policy does not name.
    Private,
    /// An entry denies it.
    Denied(PolicyEntry),
    /// Names are allowed, and this is none of them, or the connection tells none.
    Name,
    /// The policy has no DNS server to ask.
    NoDnsServer,
    /// The guest has as many connections, or flows, as it may have.
    Limit,
    /// Connections leave by a proxy, which carries TCP alone.
    NotByProxy,
    /// The proxy that connections leave by has made none.
    #[non_exhaustive]
    Proxy {
        /// Its URL, without credentials.
        proxy: String,
        /// What is wrong with it.
        fault: ProxyFault,
    },
}

/// What is wrong with a proxy that makes no connection.
///
/// ```
/// use wrenn_net::ProxyFault;
///
/// assert_eq!(ProxyFault::Credentials.to_string(), "the proxy wants credentials, or others than it was told");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProxyFault {
    /// Its name is not known, nobody listens there, or it has not answered in 10 seconds.
    #[error("the proxy is not reached: see that it runs, at that host and port, and that this host has a way to it")]
    Unreachable,
    /// It is held to the policy, which lets none of its addresses be reached.
    #[error(
        "the proxy's address is the host's own or in a private network: take a public one, or allow it with its port"
    )]
    Private,
    /// Its certificate is not for its name, not valid, or of none of those who may certify it.
    #[error("the proxy's certificate is not trusted: give its authority or its server name with the proxy")]
    Uncertified,
    /// A secret that its credentials name is not there, has not come in 10 seconds, or is not fit for them.
    #[error("a secret that the proxy's credentials name is not there, or is not of 1 to 255 bytes")]
    Secret,
    /// It was told no credentials that it takes.
    #[error("the proxy wants credentials, or others than it was told")]
    Credentials,
    /// Its own rules do not let it make this connection.
    #[error("the proxy does not let this be reached, by rules of its own")]
    Forbidden,
    /// It has not answered in 30 seconds; or what was to be reached has not.
    #[error("the proxy has not answered in time, or has waited in vain for what was to be reached")]
    Silent,
    /// It is no proxy of its kind.
    #[error("the proxy does not speak what its URL says, or ends connections without an answer")]
    Protocol,
}
