use std::net::IpAddr;

/// What is wrong with a policy, or with limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// An entry cannot be read.
    #[error("`{entry}` is no entry of a network policy: {why}")]
    Entry {
        /// As it was written.
        entry: String,
        /// What is wrong with it, and how it is written.
        why: &'static str,
    },
    /// A name was to be denied.
    #[error(
        "`{entry}` cannot be denied by its name, which a guest can get around: deny addresses, or everything with `*`, and allow names"
    )]
    DeniedName {
        /// As it was written.
        entry: String,
    },
    /// Names have no effect where their addresses are reached anyway.
    #[error("`{entry}` is allowed anyway, since everything is: deny everything with `*` as well, or leave it out")]
    NameWithoutDeny {
        /// As it was written.
        entry: String,
    },
    /// A guest that may have none of something.
    #[error("the limit {limit} is 0: leave it at its default, or close the network with `NetworkPolicy::closed()`")]
    NoneAtAll {
        /// Which one.
        limit: &'static str,
    },
    /// A rule cannot be in a policy.
    #[error("the rule for `{host}` cannot be followed: {}{why}", quoted(text))]
    Rule {
        /// What it is for.
        host: String,
        /// What is wrong in it, as it was written. Empty where that is the whole rule.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A proxy cannot be used. What was written is not quoted: it may have a password.
    #[error("the upstream proxy cannot be used: {why}")]
    Proxy {
        /// What is wrong with it, and how it is written.
        why: &'static str,
    },
    /// A DNS server may not be asked.
    #[error("the DNS server {server} cannot be asked: {why}")]
    DnsServer {
        /// Its address.
        server: IpAddr,
        /// Why not, and what to do.
        why: &'static str,
    },
    /// There are too many DNS servers.
    #[error("a policy has at most {max} DNS servers")]
    DnsServers {
        /// How many there may be.
        max: usize,
    },
    /// There are too many rules.
    #[error("a policy has at most {max} rules")]
    Rules {
        /// How many there may be.
        max: usize,
    },
}

fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`: ") }
}

impl PolicyError {
    pub(super) fn entry(entry: &str, why: &'static str) -> Self {
        Self::Entry { entry: entry.to_owned(), why }
    }
}
