//! Names, as the host's resolvers or others know them.

use std::io;
use std::net::IpAddr;
use std::sync::OnceLock;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;

use crate::egress::ipv6::Ipv6;
use crate::egress::kept_file::KeptFile;

/// Resolves names, and keeps the answers for as long as they are good: for all guests of a host.
///
/// ```no_run
/// use wrenn_net::Names;
///
/// let names = std::sync::Arc::new(Names::of_host());
/// # drop(names);
/// ```
#[derive(Debug)]
pub struct Names {
    servers: Servers,
    ipv6: Ipv6,
}

/// Who is asked.
#[derive(Debug)]
enum Servers {
    /// Those that a file names, which may change.
    Of(KeptFile<TokioResolver>),
    /// Built at the first question.
    Fixed(Vec<IpAddr>, OnceLock<Result<TokioResolver, String>>),
}

/// What is known of a name.
pub(super) enum Known {
    Records(Vec<Record>),
    /// There is no such name, or none with such records; or nobody could say.
    Nothing(ResponseCode),
}

impl Names {
    /// Asks those that `/etc/resolv.conf` names, from this program's own network. It is read at the first question, and again
    /// within seconds after it has changed, such as in another network. Answers that were kept are forgotten then.
    #[must_use]
    pub fn of_host() -> Self {
        Self::of(Servers::Of(KeptFile::new("/etc/resolv.conf")))
    }

    /// Asks these servers.
    #[must_use]
    pub fn asking(servers: Vec<IpAddr>) -> Self {
        Self::of(Servers::Fixed(servers, OnceLock::new()))
    }

    fn of(servers: Servers) -> Self {
        Self { servers, ipv6: Ipv6::default() }
    }

    /// Whether exactly these servers are asked.
    pub(super) fn asks(&self, servers: &[IpAddr]) -> bool {
        matches!(&self.servers, Servers::Fixed(fixed, _) if fixed == servers)
    }

    /// Whether this host has a way to IPv6 addresses.
    pub(super) fn has_ipv6(&self) -> bool {
        self.ipv6.is_there()
    }

    pub(super) async fn look_up(&self, query: &Query) -> Known {
        let resolver = match self.resolver() {
            Ok(resolver) => resolver,
            Err(error) => {
                tracing::warn!(%error, "names cannot be resolved: the host's /etc/resolv.conf names no server");
                return Known::Nothing(ResponseCode::ServFail);
            }
        };
        let mut name = query.name.clone();
        // Without a search list: the guest has its own.
        name.set_fqdn(true);
        match resolver.lookup(name, query.query_type).await {
            Ok(lookup) => Known::Records(lookup.answers().to_vec()),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => Known::Nothing(none.response_code),
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Known::Nothing(code),
            Err(error) => {
                tracing::debug!(%error, name = %query.name, "a name was not resolved");
                Known::Nothing(ResponseCode::ServFail)
            }
        }
    }

    /// The addresses of a name, in the order in which they are dialled. `wanted` is the one that the guest has dialled. If it is
    /// of IPv6, and the host has a way there, those of both versions take turns, IPv6 first. Otherwise they are of IPv4, and
    /// where there are none, of IPv6.
    pub(super) async fn addresses_of(&self, name: &str, wanted: IpAddr) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_ascii(name).map_err(io::Error::other)?;
        let (v4, v6) = (self.addresses(&name, RecordType::A), self.addresses(&name, RecordType::AAAA));
        if wanted.is_ipv4() || !self.has_ipv6() {
            let v4 = v4.await?;
            return if v4.is_empty() && self.has_ipv6() { v6.await } else { Ok(v4) };
        }
        match tokio::join!(v6, v4) {
            (Err(error), Err(_)) => Err(error),
            (v6, v4) => Ok(in_turns(v6.unwrap_or_default(), v4.unwrap_or_default())),
        }
    }

    async fn addresses(&self, name: &Name, kind: RecordType) -> io::Result<Vec<IpAddr>> {
        match self.look_up(&Query::query(name.clone(), kind)).await {
            Known::Records(records) => Ok(records.iter().filter_map(address_of).collect()),
            Known::Nothing(ResponseCode::ServFail) => Err(io::Error::other("the name could not be resolved")),
            Known::Nothing(_) => Ok(Vec::new()),
        }
    }

    fn resolver(&self) -> io::Result<TokioResolver> {
        match &self.servers {
            Servers::Of(file) => file.current(|bytes| {
                let (config, options) = parse_resolv_conf(bytes).map_err(io::Error::other)?;
                build(config, options)
            }),
            Servers::Fixed(servers, resolver) => {
                let built = resolver.get_or_init(|| {
                    let servers = servers.iter().map(|&server| NameServerConfig::udp_and_tcp(server)).collect();
                    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
                    build(config, ResolverOpts::default()).map_err(|error| error.to_string())
                });
                built.clone().map_err(io::Error::other)
            }
        }
    }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> io::Result<TokioResolver> {
    // Names of the host's own file are for the host.
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = CACHED_MAX;
    options.preserve_intermediates = true;
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
    builder.build().map_err(io::Error::other)
}

/// One of these, one of those, and so on (RFC 8305, section 4).
fn in_turns(first: Vec<IpAddr>, second: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::with_capacity(first.len() + second.len());
    loop {
        let before = all.len();
        all.extend(first.next().into_iter().chain(second.next()));
        if all.len() == before {
            return all;
        }
    }
}

/// The address that a record has, if it has one.
pub(super) fn address_of(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}

/// Some hundred bytes each.
const CACHED_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_versions_take_turns() {
        let of =
            |text: &str| text.split_whitespace().map(|it| it.parse().expect("an address")).collect::<Vec<IpAddr>>();
        let (v6, v4) = (of("2606:2800::1 2606:2800::2 2606:2800::3"), of("8.8.8.8 8.8.4.4"));
        assert_eq!(in_turns(v6.clone(), v4.clone()), of("2606:2800::1 8.8.8.8 2606:2800::2 8.8.4.4 2606:2800::3"));
        assert_eq!((in_turns(Vec::new(), v4.clone()), in_turns(v6.clone(), Vec::new())), (v4, v6));
    }

    #[test]
    fn the_hosts_servers_are_those_of_its_file_as_it_is() {
        let path = std::env::temp_dir().join(format!("wrenn-net-names-{}", std::process::id()));
        let names = Names::of(Servers::Of(KeptFile::new(&path)));
        assert!(names.resolver().is_err(), "there is no file");
        std::fs::write(&path, "search example.com\n").expect("written");
        assert!(names.resolver().is_err(), "it names no server");
        std::fs::write(&path, "nameserver 192.0.2.53\noptions timeout:2\n").expect("written");
        let resolver = names.resolver().expect("a resolver");
        assert_eq!(resolver.options().timeout.as_secs(), 2, "its options are the host's");
        std::fs::remove_file(&path).expect("removed");
    }
}
