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
pub struct Names(Servers);

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
        Self(Servers::Of(KeptFile::new("/etc/resolv.conf")))
    }

    /// Asks these servers.
    #[must_use]
    pub fn asking(servers: Vec<IpAddr>) -> Self {
        Self(Servers::Fixed(servers, OnceLock::new()))
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

    /// The IPv4 addresses of a name, in the order in which they were answered.
    pub(super) async fn addresses_of(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_ascii(name).map_err(io::Error::other)?;
        match self.look_up(&Query::query(name, RecordType::A)).await {
            Known::Records(records) => Ok(records.iter().filter_map(address_of).collect()),
            Known::Nothing(ResponseCode::ServFail) => Err(io::Error::other("the name could not be resolved")),
            Known::Nothing(_) => Ok(Vec::new()),
        }
    }

    fn resolver(&self) -> io::Result<TokioResolver> {
        match &self.0 {
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

/// The address that a record has, if it has one of IPv4.
pub(super) fn address_of(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(address) => Some(address.0.into()),
        _ => None,
    }
}

/// Some hundred bytes each.
const CACHED_MAX: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_servers_are_those_of_its_file_as_it_is() {
        let path = std::env::temp_dir().join(format!("wrenn-net-names-{}", std::process::id()));
        let names = Names(Servers::Of(KeptFile::new(&path)));
        assert!(names.resolver().is_err(), "there is no file");
        std::fs::write(&path, "search example.com\n").expect("written");
        assert!(names.resolver().is_err(), "it names no server");
        std::fs::write(&path, "nameserver 192.0.2.53\noptions timeout:2\n").expect("written");
        let resolver = names.resolver().expect("a resolver");
        assert_eq!(resolver.options().timeout.as_secs(), 2, "its options are the host's");
        std::fs::remove_file(&path).expect("removed");
    }
}
