//! The way to a guest's ports.

use std::io;

use futures::future::BoxFuture;
use tokio::net::TcpStream;

/// Opens a socket to a port of the guest, from inside the sandbox's network namespace.
pub(crate) trait Connector: Send + Sync {
    fn connect(&self, port: u16) -> BoxFuture<'_, io::Result<TcpStream>>;
}
