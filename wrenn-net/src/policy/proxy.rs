//! The proxy by which a guest's connections leave.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use crate::policy::entry::name_of;
use crate::policy::error::PolicyError;
use crate::policy::value::Value;

/// A proxy by which all TCP of a guest's leaves that its policy lets through, given by
/// [`NetworkPolicy::through`](crate::NetworkPolicy::through).
///
/// | written | is |
/// |---|---|
/// | `socks5://HOST:PORT` | SOCKS5 (RFC 1928) |
/// | `http://HOST:PORT` | HTTP's CONNECT (RFC 9110) |
/// | `socks5+tls://HOST:PORT`, `https://HOST:PORT` | the same within TLS |
///
/// The host is a name or an address of whatever network: the guest does not choose it. Where somebody does who may not
/// reach every network of this host's, [`held_to_policy`](Self::held_to_policy) is for that. `USERNAME:${secret.NAME}@` may stand
/// before it, percent-encoded where that is needed, in place of [`credentials`](Self::credentials).
///
/// The proxy is kept with the policy, in records as well, and so a password is no part of it: `${secret.NAME}` stands for
/// what a [`SecretSource`](crate::SecretSource) has under that name when a connection is made.
///
/// ```
/// use wrenn_net::{NetworkPolicy, UpstreamProxy};
///
/// # fn main() -> Result<(), wrenn_net::PolicyError> {
/// let proxy = UpstreamProxy::of("https://proxy.example:3128")?.credentials("ada", "${secret.PROXY_PASSWORD}")?;
/// assert_eq!(proxy, UpstreamProxy::of("https://ada:${secret.PROXY_PASSWORD}@proxy.example:3128")?);
/// assert_eq!(proxy.to_string(), "https://proxy.example:3128");
/// let policy = NetworkPolicy::default().through(proxy);
/// # assert!(policy.proxy().is_some());
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct UpstreamProxy {
    scheme: Scheme,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    credentials: Option<Credentials>,
    server_name: Option<String>,
    authority: Option<String>,
    is_held_to_policy: bool,
}

/// What is spoken with a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyProtocol {
    Socks5,
    /// CONNECT.
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scheme {
    text: &'static str,
    protocol: ProxyProtocol,
    has_tls: bool,
}

/// Whom a proxy is told that a connection is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) username: Value,
    pub(crate) password: Value,
}

/// As it is in a record.
#[derive(Serialize, Deserialize)]
struct Written {
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    authority: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    held_to_policy: bool,
}

impl UpstreamProxy {
    /// A proxy, as its URL says. It has a port, and no path.
    ///
    /// # Errors
    /// It is not written like that; or it has a password that is no secret's name.
    pub fn of(url: &str) -> Result<Self, PolicyError> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let scheme = SCHEMES.into_iter().find(|known| known.text == scheme).ok_or_else(|| wrong(HOW))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
        let (host, port) = host.rsplit_once(':').ok_or_else(|| wrong(HOW))?;
        let port = port.parse().ok().filter(|&port: &u16| port > 0);
        let port = port.ok_or_else(|| wrong("its port is a number from 1 to 65535"))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match (bracketed, host.parse::<IpAddr>()) {
            (Some(inside), _) => inside.parse::<std::net::Ipv6Addr>().map_err(|_| wrong(HOW))?.to_string(),
            (None, Ok(IpAddr::V4(address))) => address.to_string(),
            (None, _) => name_of(host).map_err(|_| wrong(HOW))?,
        };
        let proxy = Self {
            scheme,
            host,
            port,
            credentials: None,
            server_name: None,
            authority: None,
            is_held_to_policy: false,
        };
        let Some(user) = user else { return Ok(proxy) };
        let (username, password) = user.split_once(':').ok_or_else(|| wrong("a username has a password after it"))?;
        let decoded =
            |text| percent_decode_str(text).decode_utf8().map_err(|_| wrong("its username or password is no text"));
        proxy.credentials(&decoded(username)?, &decoded(password)?)
    }

    /// The username and the password that the proxy is told. `${secret.NAME}` in them stands for a secret, and there is one
    /// in the password at least. What comes of each has at most 255 bytes.
    ///
    /// # Errors
    /// One is not written like that: the password, such as it is, would be in records.
    pub fn credentials(mut self, username: &str, password: &str) -> Result<Self, PolicyError> {
        let value = |text: &str| text.parse::<Value>().map_err(wrong);
        let (username, password) = (value(username)?, value(password)?);
        if password.secrets().next().is_none() {
            return Err(wrong(PASSWORD));
        }
        self.credentials = Some(Credentials { username, password });
        Ok(self)
    }

    /// The name that the proxy's certificate has to be for. Default: its host.
    ///
    /// # Errors
    /// It is neither a name nor an address; or the proxy is not spoken to by TLS.
    pub fn server_name(mut self, name: &str) -> Result<Self, PolicyError> {
        let is_name = name.parse::<IpAddr>().is_ok() || name_of(name).is_ok();
        self.server_name = Some(name.to_owned());
        if is_name { self.with_tls() } else { Err(wrong("its server name is neither a name nor an address")) }
    }

    /// Who has to certify the proxy, in PEM, in place of the host's authorities.
    ///
    /// # Errors
    /// There is no certificate in it, or one that cannot be read, or it is longer than 64 KiB; or the proxy is not spoken to
    /// by TLS.
    pub fn authority(mut self, pem: &str) -> Result<Self, PolicyError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        if pem.len() > PEM_BYTES_MAX || certificates.map_or(true, |certificates| certificates.is_empty()) {
            return Err(wrong("its authority is certificates in PEM, of 64 KiB at most"));
        }
        self.authority = Some(pem.to_owned());
        self.with_tls()
    }

    /// Has the proxy itself be reached as the policy says: at a public address, or in a private network that the policy's
    /// `allow` names with the proxy's port, and never on the host, its loopback or its link. Where its host is a name, each
    /// connection looks at the addresses that the name has then. Default: it may be at any address.
    #[must_use]
    pub fn held_to_policy(mut self) -> Self {
        self.is_held_to_policy = true;
        self
    }

    fn with_tls(self) -> Result<Self, PolicyError> {
        match self.scheme.has_tls {
            true => Ok(self),
            false => Err(wrong("a server name and an authority are for TLS: `https://` or `socks5+tls://`")),
        }
    }

    pub(crate) fn protocol(&self) -> ProxyProtocol {
        self.scheme.protocol
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The name that its certificate has to be for; `None` where it is spoken to without TLS.
    pub(crate) fn tls_name(&self) -> Option<&str> {
        self.scheme.has_tls.then(|| self.server_name.as_deref().unwrap_or(&self.host))
    }

    /// Who has to certify it, where that is not up to the host.
    pub(crate) fn own_authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    pub(crate) fn is_held_to_policy(&self) -> bool {
        self.is_held_to_policy
    }

    pub(crate) fn told(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }
}

impl FromStr for UpstreamProxy {
    type Err = PolicyError;

    fn from_str(url: &str) -> Result<Self, PolicyError> {
        Self::of(url)
    }
}

/// Without its credentials.
impl fmt::Display for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = (self.scheme.text, &self.host, self.port);
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

impl fmt::Debug for UpstreamProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UpstreamProxy({self})")
    }
}

impl TryFrom<Written> for UpstreamProxy {
    type Error = PolicyError;

    fn try_from(written: Written) -> Result<Self, PolicyError> {
        let mut proxy = Self::of(&written.url)?;
        match (written.username, written.password) {
            (Some(username), Some(password)) => proxy = proxy.credentials(&username, &password)?,
            (None, None) => {}
            _ => return Err(wrong("a username and a password are there together")),
        }
        if let Some(name) = written.server_name {
            proxy = proxy.server_name(&name)?;
        }
        if written.held_to_policy {
            proxy = proxy.held_to_policy();
        }
        match written.authority {
            Some(pem) => proxy.authority(&pem),
            None => Ok(proxy),
        }
    }
}

impl From<UpstreamProxy> for Written {
    fn from(proxy: UpstreamProxy) -> Self {
        let url = proxy.to_string();
        let (username, password) = proxy.credentials.map(|it| (it.username.into(), it.password.into())).unzip();
        Self {
            url,
            username,
            password,
            server_name: proxy.server_name,
            authority: proxy.authority,
            held_to_policy: proxy.is_held_to_policy,
        }
    }
}

/// It quotes nothing, which may be a password.
fn wrong(why: &'static str) -> PolicyError {
    PolicyError::Proxy { why }
}

const SCHEMES: [Scheme; 4] = [
    Scheme { text: "socks5", protocol: ProxyProtocol::Socks5, has_tls: false },
    Scheme { text: "socks5+tls", protocol: ProxyProtocol::Socks5, has_tls: true },
    Scheme { text: "http", protocol: ProxyProtocol::Http, has_tls: false },
    Scheme { text: "https", protocol: ProxyProtocol::Http, has_tls: true },
];
const HOW: &str =
    "it is written `socks5://HOST:PORT`, `socks5+tls://HOST:PORT`, `http://HOST:PORT` or `https://HOST:PORT`";
const PASSWORD: &str =
    "its password would be kept in records: write `${secret.NAME}`, and give a secret of that name to the host";
const PEM_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const WITH_ALL: &str = "https://ada:${secret.PASSWORD}@proxy.example:3128";

    fn proxy(url: &str) -> UpstreamProxy {
        UpstreamProxy::of(url).expect(url)
    }

    #[test]
    fn a_proxy_is_what_its_url_says() {
        for (url, protocol, tls_name, host, port) in [
            ("socks5://proxy.example:1080", ProxyProtocol::Socks5, None, "proxy.example", 1080),
            ("socks5+tls://10.0.0.1:1", ProxyProtocol::Socks5, Some("10.0.0.1"), "10.0.0.1", 1),
            ("http://localhost:3128", ProxyProtocol::Http, None, "localhost", 3128),
            ("https://[fd00::1]:443", ProxyProtocol::Http, Some("fd00::1"), "fd00::1", 443),
        ] {
            let proxy = proxy(url);
            assert_eq!((proxy.protocol(), proxy.tls_name()), (protocol, tls_name), "{url}");
            assert_eq!((proxy.host(), proxy.port(), proxy.to_string().as_str()), (host, port, url));
        }
        assert_eq!(proxy("http://Proxy.example:3128/"), proxy("http://proxy.example:3128"));
        let named = proxy("https://10.0.0.1:443").server_name("proxy.example").expect("a name");
        assert_eq!(named.tls_name(), Some("proxy.example"));
    }

    #[test]
    fn credentials_are_decoded_and_are_neither_shown_nor_quoted() {
        let proxy = proxy("socks5://a%40b%3Ac:x-%24%7Bsecret.KEY%7D@proxy.example:1080");
        let told = proxy.told().expect("credentials");
        assert_eq!((told.username.to_string(), told.password.to_string()), ("a@b:c".into(), "x-${secret.KEY}".into()));
        for text in [format!("{proxy}"), format!("{proxy:?}"), format!("{proxy:#?}")] {
            assert!(!text.contains("a@b") && !text.contains("KEY"), "{text}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_with_what_is_wrong_and_without_what_was_written() {
        let of = |url: &str| UpstreamProxy::of(url).map(drop);
        let tls = || proxy("https://proxy.example:3128");
        for (refused, part) in [
            (of("proxy.example:3128"), "`socks5://HOST:PORT`"),
            (of("socks4://proxy.example:3128"), "`socks5://HOST:PORT`"),
            (of("http://proxy.example"), "HOST:PORT"),
            (of("http://proxy.example:0"), "from 1 to 65535"),
            (of("http://proxy.example:hunter2"), "from 1 to 65535"),
            (of("http://fd00::1:3128"), "HOST:PORT"),
            (of("http://[10.0.0.1]:3128"), "HOST:PORT"),
            (of("http://proxy.example:3128/path"), "from 1 to 65535"),
            (of("http://ada:hunter2@proxy.example:3128"), "`${secret.NAME}`"),
            (of("http://ada:@proxy.example:3128"), "1 to 4096 bytes"),
            (of("http://:${secret.A}@proxy.example:3128"), "1 to 4096 bytes"),
            (of("http://hunter2@proxy.example:3128"), "a password after it"),
            (of("http://ada:${secret.A@proxy.example:3128"), "no `}`"),
            (of("http://ada%00:${secret.A}@proxy.example:3128"), "control"),
            (of("http://%ff:${secret.A}@proxy.example:3128"), "no text"),
            (tls().server_name("*.example").map(drop), "server name"),
            (tls().authority("hunter2").map(drop), "in PEM"),
            (proxy("http://proxy.example:3128").server_name("a.example").map(drop), "`https://`"),
        ] {
            let error = refused.expect_err(part).to_string();
            assert!(error.contains(part) && !error.contains("hunter2") && !error.contains("ada"), "{error}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let pem = crate::Authority::generate().expect("an authority").certificate().to_owned();
        let full = proxy(WITH_ALL).server_name("a.example").and_then(|proxy| proxy.authority(&pem)).expect("a proxy");
        let held = proxy("socks5://[fd00::1]:1080").held_to_policy();
        for proxy in [full, proxy(WITH_ALL), proxy("socks5://[fd00::1]:1080"), held] {
            let text = serde_json::to_string(&proxy).expect("JSON");
            assert_eq!(serde_json::from_str::<UpstreamProxy>(&text).expect("a proxy"), proxy, "{text}");
        }
        let text = serde_json::to_string(&proxy(WITH_ALL)).expect("JSON");
        let expected = r#"{"url":"https://proxy.example:3128","username":"ada","password":"${secret.PASSWORD}"}"#;
        assert_eq!(text, expected);
        // As a record could have it.
        for bad in [
            r#"{"url":"https://proxy.example:3128","username":"ada"}"#,
            r#"{"url":"https://proxy.example:3128","username":"ada","password":"hunter2"}"#,
            r#"{"url":"http://proxy.example:3128","server_name":"a.example"}"#,
        ] {
            assert!(serde_json::from_str::<UpstreamProxy>(bad).is_err(), "{bad}");
        }
    }
}
