//! A slot of a machine's own: its namespace, its tap and its way out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use futures::future::BoxFuture;
use nix::sched::{CloneFlags, setns};
use tokio::net::TcpStream;
use wrenn_net::{Gate, SlotPool};

use crate::agent::connector::Connector;
use crate::error::{Error, Result};

/// How a machine is plugged in, how its agent is reached, and where its way out begins.
pub(crate) struct Network {
    pub(crate) plug: Plug,
    pub(crate) connector: Arc<dyn Connector>,
    /// `None` for a fake.
    pub(crate) gate: Option<Gate>,
}

/// The machine's end of its network.
#[derive(Debug)]
pub(crate) enum Plug {
    Tap {
        tap: wrenn_net::Tap,
        /// Where the tap is, for a VMM that opens it by name.
        namespaces: Namespaces,
    },
    /// What the fake needs.
    #[cfg(test)]
    Nothing,
}

/// Where a slot's tap is.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// The one that the other belongs to, where this program has no rights of its own over it.
    pub(crate) user: Option<OwnedFd>,
    pub(crate) net: OwnedFd,
}

impl Namespaces {
    pub(crate) fn of(slot: &wrenn_net::Slot) -> io::Result<Self> {
        let user = slot.user_namespace().map(|user| user.try_clone_to_owned()).transpose()?;
        Ok(Self { user, net: slot.namespace().try_clone_to_owned()? })
    }

    /// Moves the calling thread into them. Only a process with one thread can move into another user namespace. Makes
    /// system calls alone.
    pub(crate) fn enter(&self) -> io::Result<()> {
        if let Some(user) = &self.user {
            setns(user, CloneFlags::CLONE_NEWUSER)?;
        }
        Ok(setns(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?)
    }
}

impl Network {
    /// Takes a slot that is ready, or makes one.
    pub(crate) async fn slot(slots: &SlotPool) -> Result<Self> {
        const WHAT: &str = "make the network slot";
        let (slot, tap, gate) = slots.take().await?;
        let namespaces = Namespaces::of(&slot).map_err(|e| Error::failed(WHAT)(e.into()))?;
        let connector = Arc::new(SlotConnector(slot));
        Ok(Self { plug: Plug::Tap { tap, namespaces }, connector, gate: Some(gate) })
    }
}

/// Reaches the guest from inside the slot's namespace.
struct SlotConnector(wrenn_net::Slot);

impl Connector for SlotConnector {
    fn connect(&self, port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(self.0.connect(port))
    }
}
