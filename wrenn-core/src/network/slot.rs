//! A slot of a machine's own: its namespace and its tap.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::net::TcpStream;

use crate::agent::connector::Connector;
use crate::error::{Error, Result};
use crate::runtime::blocking;

/// How a machine is plugged in, and how its agent is reached.
pub(crate) struct Network {
    pub(crate) plug: Plug,
    pub(crate) connector: Arc<dyn Connector>,
}

/// The machine's end of its network.
#[derive(Debug)]
pub(crate) enum Plug {
    Tap {
        tap: wrenn_net::Tap,
        /// Where the tap is, for a VMM that opens it by name.
        namespace: OwnedFd,
    },
    /// What the fake needs.
    #[cfg(test)]
    Nothing,
}

impl Network {
    /// Makes a slot.
    pub(crate) async fn slot() -> Result<Self> {
        const WHAT: &str = "make the network slot";
        let (slot, tap) = blocking(WHAT, wrenn_net::Slot::create).await??;
        let namespace = slot.namespace().try_clone_to_owned().map_err(|e| Error::failed(WHAT)(e.into()))?;
        Ok(Self { plug: Plug::Tap { tap, namespace }, connector: Arc::new(SlotConnector(slot)) })
    }
}

/// Reaches the guest from inside the slot's namespace.
struct SlotConnector(wrenn_net::Slot);

impl Connector for SlotConnector {
    fn connect(&self, port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(self.0.connect(port))
    }
}
