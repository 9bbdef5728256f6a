//! The connections that are made in a guest's place: to servers, or by the policy's proxy.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::egress::dialled::Dialled;
use crate::egress::intercept::Interception;
use crate::egress::proxy::{NotMade, Proxies};
use crate::egress::shared::{Destination, Route, Shared};
use crate::policy::{NetworkPolicy, Protocol, Refusal};

/// Makes the connections of one guest.
#[derive(Debug)]
pub(super) struct Dialler {
    shared: Arc<Shared>,
    proxies: Proxies,
}

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) dialled: Dialled,
    pub(super) to: SocketAddr,
    pub(super) route: Route,
}

impl Dialler {
    pub(super) fn new(shared: Arc<Shared>, interception: Option<Interception>) -> Self {
        Self { shared, proxies: Proxies::new(interception) }
    }

    /// Connects to one of these addresses, in their order.
    pub(super) async fn dial(&self, addresses: &[IpAddr], port: u16) -> io::Result<Made> {
        let (policy, route) = self.shared.current();
        let mut last = None;
        for address in addresses.iter().take(ADDRESSES_MAX) {
            let to = SocketAddr::new(*address, port);
            match self.connect(&policy, to).await {
                Ok(dialled) => return Ok(Made { dialled, to, route }),
                Err(NotMade::Server(error)) => last = Some(error),
                Err(NotMade::Proxy(fault)) => {
                    let proxy = policy.proxy().map(ToString::to_string).unwrap_or_default();
                    let destination = Destination::Address { address: to };
                    self.shared.refuse(&destination, Protocol::Tcp, Refusal::Proxy { proxy, fault });
                    // No other address fares better.
                    return Err(io::ErrorKind::HostUnreachable.into());
                }
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
    }

    async fn connect(&self, policy: &NetworkPolicy, to: SocketAddr) -> Result<Dialled, NotMade> {
        match policy.proxy() {
            Some(proxy) => self.proxies.connect(proxy, policy, to).await,
            None => {
                let connected = timeout(DIAL_MAX, TcpStream::connect(to)).await.map_err(io::Error::from)?;
                Ok(Dialled::Tcp(connected?))
            }
        }
    }
}

/// As long as most programs wait for a connection, and shorter than Linux waits by itself.
const DIAL_MAX: Duration = Duration::from_secs(30);
const ADDRESSES_MAX: usize = 4;
