//! The connections that are made in a guest's place.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connects to one of these addresses, in their order, and tells to which.
pub(super) async fn dial(addresses: &[IpAddr], port: u16) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = None;
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let to = SocketAddr::new(*address, port);
        match timeout(DIAL_MAX, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => return Ok((stream, to)),
            Ok(Err(error)) => last = Some(error),
            Err(elapsed) => last = Some(elapsed.into()),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
}

/// As long as most programs wait for a connection, and shorter than Linux waits by itself.
const DIAL_MAX: Duration = Duration::from_secs(30);
const ADDRESSES_MAX: usize = 4;
