//! A slot of a machine's own: its namespace, its tap and its way out.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::net::TcpStream;
use wrenn_net::Egress;

use crate::agent::connector::Connector;
use crate::error::{Error, Result};
use crate::network::way_out::WayOut;

/// How a machine is plugged in, how its agent is reached, and what it reaches.
pub(crate) struct Network {
    pub(crate) plug: Plug,
    pub(crate) connector: Arc<dyn Connector>,
    /// `None` for a fake.
    pub(crate) egress: Option<Arc<Egress>>,
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
    /// Takes a slot that is ready, or makes one.
    pub(crate) async fn slot(way_out: WayOut) -> Result<Self> {
        const WHAT: &str = "make the network slot";
        let (slot, tap, gate) = way_out.slots.take().await?;
        let namespace = slot.namespace().try_clone_to_owned().map_err(|e| Error::failed(WHAT)(e.into()))?;
        let egress = Some(Arc::new(way_out.open(gate)?));
        Ok(Self { plug: Plug::Tap { tap, namespace }, connector: Arc::new(SlotConnector(slot)), egress })
    }
}

/// Reaches the guest from inside the slot's namespace.
struct SlotConnector(wrenn_net::Slot);

impl Connector for SlotConnector {
    fn connect(&self, port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(self.0.connect(port))
    }
}
