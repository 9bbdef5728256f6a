//! The way to a proxy, and from there on.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::egress::dialled::Dialled;
use crate::egress::intercept::Interception;
use crate::egress::proxy::addresses::Addresses;
use crate::egress::proxy::credentials::{Filled, fill};
use crate::egress::proxy::not_made::NotMade;
use crate::egress::proxy::{http, socks};
use crate::egress::servers::Servers;
use crate::egress::shared::is_hosts;
use crate::policy::{NetworkPolicy, ProxyFault, ProxyProtocol, UpstreamProxy};

/// Connects by the proxies of one guest's policy.
#[derive(Debug, Default)]
pub(in crate::egress) struct Proxies {
    addresses: Addresses,
    /// Where nothing is intercepted.
    servers: Servers,
    /// Has the guest's secrets, and whom proxies have to be certified by.
    interception: Option<Interception>,
}

impl Proxies {
    pub(in crate::egress) fn new(interception: Option<Interception>) -> Self {
        Self { interception, ..Self::default() }
    }

    /// Connects to an address by the proxy of a policy.
    pub(in crate::egress) async fn connect(
        &self,
        proxy: &UpstreamProxy,
        policy: &NetworkPolicy,
        to: SocketAddr,
    ) -> Result<Dialled, NotMade> {
        let secrets = self.interception.as_ref().map(|interception| &*interception.secrets);
        let told = match proxy.told() {
            Some(credentials) => Some(fill(credentials, secrets).await?),
            None => None,
        };
        let mut stream = timeout(REACH_MAX, self.reach(proxy, policy)).await.unwrap_or(Err(ProxyFault::Unreachable))?;
        let asked = async {
            match &mut stream {
                Dialled::Tcp(stream) => ask(proxy.protocol(), stream, to, told.as_ref()).await,
                tunnel @ Dialled::Tls(_) => ask(proxy.protocol(), tunnel, to, told.as_ref()).await,
            }
        };
        timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_elapsed| Err(ProxyFault::Silent.into()))?;
        Ok(stream)
    }

    async fn reach(&self, proxy: &UpstreamProxy, policy: &NetworkPolicy) -> Result<Dialled, ProxyFault> {
        let mut addresses = self.addresses.of(proxy.host(), proxy.port()).await.map_err(unreachable(proxy))?;
        if proxy.is_held_to_policy() && !addresses.is_empty() {
            // What was looked at is what is connected to.
            addresses.retain(|at| policy.may_reach_proxy(proxy, at.ip()) && !is_hosts(at.ip()));
            if addresses.is_empty() {
                return Err(ProxyFault::Private);
            }
        }
        let stream = TcpStream::connect(&addresses[..]).await.map_err(unreachable(proxy))?;
        stream.set_nodelay(true).map_err(unreachable(proxy))?;
        let Some(name) = proxy.tls_name() else { return Ok(Dialled::Tcp(stream)) };
        let own = proxy.own_authority().map(Servers::certified_by).transpose().map_err(|_| ProxyFault::Uncertified)?;
        let of_host = || self.interception.as_ref().map_or(&self.servers, |it| it.interceptor.servers());
        let servers = own.as_ref().unwrap_or_else(of_host);
        match servers.connect(name, stream, Vec::new()).await {
            Ok(stream) => Ok(Dialled::over_tls(stream)),
            Err(error) => {
                tracing::debug!(%error, %proxy, "there is no TLS with a proxy");
                let why = error.get_ref().and_then(|error| error.downcast_ref());
                let is_uncertified = matches!(why, Some(rustls::Error::InvalidCertificate(_)));
                Err(if is_uncertified { ProxyFault::Uncertified } else { ProxyFault::Protocol })
            }
        }
    }
}

fn unreachable(proxy: &UpstreamProxy) -> impl FnOnce(std::io::Error) -> ProxyFault {
    move |error| {
        tracing::debug!(%error, %proxy, "a proxy is not reached");
        ProxyFault::Unreachable
    }
}

async fn ask(
    protocol: ProxyProtocol,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    to: SocketAddr,
    told: Option<&Filled>,
) -> Result<(), NotMade> {
    match protocol {
        ProxyProtocol::Socks5 => socks::connect(stream, to, told).await,
        ProxyProtocol::Http => http::connect(stream, to, told).await,
    }
}

/// For its name, TCP and TLS.
const REACH_MAX: Duration = Duration::from_secs(10);
/// As long as a server may take to be connected to, which a proxy waits for.
const ANSWER_MAX: Duration = Duration::from_secs(30);
