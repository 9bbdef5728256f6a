//! Ports of a guest's that are listeners of the host's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::client::AgentClient;
use crate::error::{Error, Result};
use crate::network::listener::{Listener, Passage};
use crate::state::PublishedPort;

/// Where a port of the guest is published, as [`Sandbox::publish`](crate::Sandbox::publish) takes it. By default that is the
/// host's loopback, so that no other machine reaches it, and a port that is free.
///
/// ```
/// use wrenn_core::PublishOptions;
///
/// let options = PublishOptions::default().address([0, 0, 0, 0].into()).port(8080).wake(true);
/// # drop(options);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct PublishOptions {
    address: IpAddr,
    port: u16,
    wake: bool,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 0, wake: false }
    }
}

impl PublishOptions {
    /// The address of the host's to listen on. Default: 127.0.0.1. With `0.0.0.0` whoever reaches the host reaches the
    /// guest's port.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// The port to listen on. Default: 0, which is one that is free.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }
    /// Whether a connection wakes the sandbox while it is paused. Default: `false`, and a pause closes the port. See
    /// [`Sandbox::publish`](crate::Sandbox::publish) for what becomes of a sandbox that a connection has woken.
    pub fn wake(mut self, wake: bool) -> Self {
        self.wake = wake;
        self
    }
}

/// A port whose sandbox is paused, and that is still listened on: a connection to it wakes the sandbox. Dropping it closes
/// it.
#[derive(Debug, Clone)]
pub(crate) struct SleepingPort {
    pub(crate) port: PublishedPort,
    pub(crate) listener: Arc<Listener>,
}

impl SleepingPort {
    /// Listens on the port of a sandbox that is paused.
    pub(crate) async fn open(port: &PublishedPort) -> Result<Self> {
        let listener = Listener::bind(port.address).await?;
        Ok(Self { port: PublishedPort { problem: None, ..port.clone() }, listener })
    }
}

/// The ports of one running guest that are published. Dropping it closes them, and resets their connections.
#[derive(Debug, Default)]
pub(crate) struct Publications {
    known: Mutex<Vec<Publication>>,
    passage: watch::Sender<Passage>,
}

#[derive(Debug)]
struct Publication {
    port: PublishedPort,
    /// `None` where it could not be opened again, or was closed.
    served: Option<Served>,
}

#[derive(Debug)]
struct Served {
    listener: Arc<Listener>,
    serving: AbortOnDropHandle<()>,
}

impl Publications {
    pub(crate) async fn open(
        &self,
        agent: &Arc<AgentClient>,
        guest_port: u16,
        options: PublishOptions,
    ) -> Result<PublishedPort> {
        if guest_port == 0 {
            return Err(Error::invalid("port 0 of the guest: publish one from 1 to 65535"));
        }
        let asked = SocketAddr::new(options.address, options.port);
        let listener = Listener::bind(asked).await?;
        // What could not be opened after a resume was tried again.
        self.known().retain(|known| known.port.problem.is_none() || known.port.address != asked);
        let port = PublishedPort { guest_port, address: listener.address(), wake: options.wake, problem: None };
        self.serve(agent, port.clone(), listener);
        Ok(port)
    }

    /// Opens what was published before a pause, under the addresses of then: with the listeners that the pause has left
    /// open, where there are some. One that cannot be opened tells why.
    pub(crate) async fn reopen(
        &self,
        agent: &Arc<AgentClient>,
        ports: &[PublishedPort],
        mut asleep: Vec<SleepingPort>,
    ) {
        for port in ports {
            if let Some(index) = asleep.iter().position(|asleep| asleep.port.address == port.address) {
                self.serve(agent, port.clone(), asleep.swap_remove(index).listener);
                continue;
            }
            let options = PublishOptions { address: port.address.ip(), port: port.address.port(), wake: port.wake };
            if let Err(error) = self.open(agent, port.guest_port, options).await {
                tracing::warn!(%error, guest_port = port.guest_port, "a port is no longer published");
                let port = PublishedPort { problem: Some(error.to_string()), ..port.clone() };
                self.known().push(Publication { port, served: None });
            }
        }
    }

    fn serve(&self, agent: &Arc<AgentClient>, port: PublishedPort, listener: Arc<Listener>) {
        let (serves, of, passage) = (Arc::clone(&listener), Arc::clone(agent), self.passage.subscribe());
        let serving = tokio::spawn(async move { serves.serve(of, port.guest_port, passage).await });
        let served = Served { listener, serving: AbortOnDropHandle::new(serving) };
        let (mut known, closed) = (self.known(), agent.closed());
        // Of a guest that was closed meanwhile, nobody would take it.
        known.push(Publication { port, served: (!closed.is_cancelled()).then_some(served) });
    }

    /// From now on new connections wait, since the guest is about to be paused.
    pub(crate) fn hold(&self) {
        self.passage.send_replace(Passage::Held);
    }

    /// The guest goes on: those that have waited are carried.
    pub(crate) fn go_on(&self) {
        self.passage.send_replace(Passage::Open);
    }

    /// Closes them all, and returns once their addresses are free. They are still listed.
    pub(crate) async fn end(&self) {
        close(self.take_served().into_iter().map(|(_, served)| served)).await;
    }

    /// Closes those that do not wake the sandbox, and returns those that do, with the connections that wait. The guest is
    /// closed before. They are still listed.
    pub(crate) async fn fall_asleep(&self) -> Vec<SleepingPort> {
        let (wake, others): (Vec<_>, Vec<_>) = self.take_served().into_iter().partition(|(port, _)| port.wake);
        close(others.into_iter().map(|(_, served)| served)).await;
        let mut asleep = Vec::with_capacity(wake.len());
        for (port, Served { listener, serving }) in wake {
            // It ends by itself, since the guest is closed. What it fails of is a panic, which is logged.
            let _ = serving.await;
            asleep.push(SleepingPort { port, listener });
        }
        asleep
    }

    /// Closes that at an address, and returns whether there was one, once the address is free.
    pub(crate) async fn close(&self, address: SocketAddr) -> bool {
        let is_there = |known: &mut Publication| known.port.address == address;
        let closed: Vec<_> = self.known().extract_if(.., is_there).collect();
        let was_there = !closed.is_empty();
        close(closed.into_iter().filter_map(|known| known.served)).await;
        was_there
    }

    pub(crate) fn list(&self) -> Vec<PublishedPort> {
        self.known().iter().map(|known| known.port.clone()).collect()
    }

    fn take_served(&self) -> Vec<(PublishedPort, Served)> {
        let mut known = self.known();
        known.iter_mut().filter_map(|known| Some((known.port.clone(), known.served.take()?))).collect()
    }

    fn known(&self) -> MutexGuard<'_, Vec<Publication>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn close(served: impl IntoIterator<Item = Served>) {
    for Served { listener, serving } in served {
        serving.abort();
        // The only error is that it was aborted.
        let _ = serving.await;
        drop(listener);
    }
}
