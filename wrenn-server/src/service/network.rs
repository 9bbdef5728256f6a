//! What a sandbox may reach, from what was asked for.

use wrenn_core::{Error, NetworkPolicy, Rule};

use crate::service::egress_proxy;
use crate::store::records::Network;

/// The policy that was asked for.
///
/// # Errors
/// [`Error::InvalidInput`] for an entry, a header or a proxy that is none, and for a DNS server or a proxy that may not be asked.
pub(super) fn policy(network: &Network) -> Result<NetworkPolicy, Error> {
    let policy = match network.internet {
        Some(false) => NetworkPolicy::closed(),
        Some(true) | None => NetworkPolicy::default(),
    };
    let mut policy = policy.allow(&network.allow)?.deny(&network.deny)?;
    for (host, headers) in &network.headers {
        let mut rule = Rule::of(host)?;
        for (name, value) in headers {
            rule = rule.set_header(name, value)?;
        }
        policy = policy.rule(rule)?;
    }
    if let Some(servers) = &network.dns_servers {
        policy = policy.with_dns_servers(servers.iter().copied());
    }
    if let Some(proxy) = &network.egress_proxy {
        policy = policy.through(egress_proxy::upstream(proxy)?);
    }
    policy.check()?;
    Ok(policy)
}
