//! Where a proxy is.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// The addresses of a guest's proxy, as the host knows its name.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    host: String,
    port: u16,
    addresses: Vec<SocketAddr>,
    until: Instant,
}

impl Addresses {
    /// The addresses of a host that the owner of the sandbox has named, so its own file of names counts as well. One
    /// question is asked at a time, for each of them may take a thread.
    pub(super) async fn of(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut known = self.0.lock().await;
        if let Some(known) = &*known
            && (known.host.as_str(), known.port) == (host, port)
            && known.until > Instant::now()
        {
            return Ok(known.addresses.clone());
        }
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
        let until = Instant::now() + FRESH;
        *known = Some(Known { host: host.to_owned(), port, addresses: addresses.clone(), until });
        Ok(addresses)
    }
}

const FRESH: Duration = Duration::from_secs(5);
