//! Where a webhook's deliveries go, and whether they may.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::http::Uri;
use axum::http::uri::Scheme;
use ipnet::{Ipv4Net, Ipv6Net};

/// Which addresses deliveries may go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Those of the public internet: what is behind the server's own network is not for its clients to reach.
    Public,
    /// All of them.
    Any,
}

/// An address of a webhook, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) is_tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authority: String,
    pub(super) path: String,
}

/// Why nothing is sent to an address.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoTarget {
    #[error("url is none of http or https with a host, such as https://example.com/hook")]
    NotHttp,
    #[error("the host of url has the address {0}, which is not public: `--webhooks-private` allows it")]
    Private(IpAddr),
    #[error("the host of url has no address")]
    Unresolved(#[source] io::Error),
}

/// Whether deliveries to an address would be sent. A name that has no address now may have one later.
pub(super) async fn check(url: &str, reach: Reach) -> Result<(), NoTarget> {
    match Target::of(url)?.resolve(reach).await {
        Err(NoTarget::Unresolved(_)) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Target {
    pub(super) fn of(url: &str) -> Result<Self, NoTarget> {
        let uri: Uri = url.parse().map_err(|_| NoTarget::NotHttp)?;
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let authority =
            uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or(NoTarget::NotHttp)?;
        if !is_tls && uri.scheme() != Some(&Scheme::HTTP) || authority.host().is_empty() || url.len() > URL_BYTES_MAX {
            return Err(NoTarget::NotHttp);
        }
        // It keeps a port that is none as text.
        if authority.port_u16().is_none() && authority.as_str().len() > authority.host().len() {
            return Err(NoTarget::NotHttp);
        }
        Ok(Self {
            is_tls,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            authority: authority.to_string(),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
        })
    }

    /// The address to connect to. It is looked up once, so that it is the one that was checked. A name with an address that
    /// may not be reached is refused as a whole.
    pub(super) async fn resolve(&self, reach: Reach) -> Result<SocketAddr, NoTarget> {
        let found = tokio::net::lookup_host((&*self.host, self.port)).await.map_err(NoTarget::Unresolved)?;
        let found: Vec<SocketAddr> = found.collect();
        if let Some(private) = found.iter().find(|address| reach == Reach::Public && !is_public(address.ip())) {
            return Err(NoTarget::Private(private.ip()));
        }
        found.first().copied().ok_or_else(|| NoTarget::Unresolved(io::ErrorKind::NotFound.into()))
    }
}

/// Whether an address is on the public internet, by IANA's registries of special-purpose addresses (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !NOT_PUBLIC_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) => {
            let v4 = |a, b, c, d| is_public(Ipv4Addr::new(a, b, c, d).into());
            match address.octets() {
                // NAT64 (RFC 6052) and 6to4 (RFC 3056) lead to an IPv4 address.
                [0, 0x64, 0xff, 0x9b, .., a, b, c, d] => v4(a, b, c, d),
                [0x20, 0x02, a, b, c, d, ..] => v4(a, b, c, d),
                _ => match address.to_ipv4_mapped() {
                    Some(mapped) => is_public(mapped.into()),
                    // Global unicast is all that is given out.
                    None => {
                        address.segments()[0] >> 13 == 1
                            && !NOT_PUBLIC_V6.iter().any(|network| network.contains(&address))
                    }
                },
            }
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix)
}

const fn v6(a: u16, b: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(std::net::Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), prefix)
}

const NOT_PUBLIC_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 88, 99, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];
const NOT_PUBLIC_V6: [Ipv6Net; 3] = [v6(0x2001, 0, 23), v6(0x2001, 0xdb8, 32), v6(0x3fff, 0, 20)];
const URL_BYTES_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_of_http_and_has_a_host() {
        let target = Target::of("https://[2606:4700::1]/a?b=c").expect("a target");
        assert_eq!((&*target.host, target.port, &*target.path), ("2606:4700::1", 443, "/a?b=c"));
        let target = Target::of("http://example.com:81").expect("a target");
        assert_eq!((target.is_tls, &*target.authority, &*target.path), (false, "example.com:81", "/"));
        for bad in [
            "",
            "/a",
            "example.com",
            "ftp://example.com",
            "http://",
            "http://user:pass@example.com/",
            "http://a b",
            "http://a:99999",
            "http://a:",
        ] {
            assert!(matches!(Target::of(bad), Err(NoTarget::NotHttp)), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_not_public_is_refused_however_it_is_written() {
        for public in ["1.1.1.1", "[2606:4700::1]", "[::ffff:1.1.1.1]", "[64:ff9b::101:101]"] {
            check(&format!("https://{public}/"), Reach::Public)
                .await
                .unwrap_or_else(|error| panic!("{public}: {error}"));
        }
        for private in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0.0.0.0",
            "10.1.2.3",
            "169.254.169.254",
            "192.168.0.1",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[fd00::1]",
            "[fe80::1]",
            "[ff02::1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
            "localhost",
        ] {
            let url = format!("http://{private}:8080/");
            let refused = check(&url, Reach::Public).await.expect_err(private);
            assert!(matches!(refused, NoTarget::Private(_)), "{private}: {refused}");
            check(&url, Reach::Any).await.unwrap_or_else(|error| panic!("{private}: {error}"));
        }
    }
}
