//! Ports of a guest's that are listeners of the host's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::agent::client::AgentClient;
use crate::error::{Error, Result, Subject};
use crate::network::port_stream::PortStream;
use crate::state::PublishedPort;

/// Where a port of the guest is published, as [`Sandbox::publish`](crate::Sandbox::publish) takes it. By default that is the
/// host's loopback, so that no other machine reaches it, and a port that is free.
///
/// ```
/// use wrenn_core::PublishOptions;
///
/// let options = PublishOptions::default().address([0, 0, 0, 0].into()).port(8080);
/// # drop(options);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct PublishOptions {
    address: IpAddr,
    port: u16,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port: 0 }
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
}

/// The ports of one running guest that are published. Dropping it closes them, and resets their connections.
#[derive(Debug, Default)]
pub(crate) struct Publications(Mutex<Vec<Publication>>);

#[derive(Debug)]
struct Publication {
    port: PublishedPort,
    /// `None` where it could not be opened again, or was closed.
    accepting: Option<AbortOnDropHandle<()>>,
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
        let (listener, address) = listen(asked).await.map_err(refusal(asked))?;
        // What could not be opened after a resume was tried again.
        self.lock().retain(|known| known.port.problem.is_none() || known.port.address != asked);
        let port = PublishedPort { guest_port, address, problem: None };
        let accepting = tokio::spawn(accept(listener, Arc::clone(agent), guest_port));
        self.lock().push(Publication { port: port.clone(), accepting: Some(AbortOnDropHandle::new(accepting)) });
        Ok(port)
    }

    /// Opens what was published before a pause, under the addresses of then. One that cannot be opened tells why.
    pub(crate) async fn reopen(&self, agent: &Arc<AgentClient>, ports: &[PublishedPort]) {
        for port in ports {
            let options = PublishOptions { address: port.address.ip(), port: port.address.port() };
            if let Err(error) = self.open(agent, port.guest_port, options).await {
                tracing::warn!(%error, guest_port = port.guest_port, "a port is no longer published");
                let port = PublishedPort { problem: Some(error.to_string()), ..port.clone() };
                self.lock().push(Publication { port, accepting: None });
            }
        }
    }

    /// Closes them all, and returns once their addresses are free. They are still listed.
    pub(crate) async fn end(&self) {
        let accepting: Vec<_> = self.lock().iter_mut().filter_map(|known| known.accepting.take()).collect();
        close(accepting).await;
    }

    /// Closes that at an address, and returns whether there was one, once the address is free.
    pub(crate) async fn close(&self, address: SocketAddr) -> bool {
        let is_there = |known: &mut Publication| known.port.address == address;
        let closed: Vec<_> = self.lock().extract_if(.., is_there).collect();
        let was_there = !closed.is_empty();
        close(closed.into_iter().filter_map(|known| known.accepting)).await;
        was_there
    }

    pub(crate) fn list(&self) -> Vec<PublishedPort> {
        self.lock().iter().map(|known| known.port.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Publication>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn close(accepting: impl IntoIterator<Item = AbortOnDropHandle<()>>) {
    for accepting in accepting {
        accepting.abort();
        // The only error is that it was aborted.
        let _ = accepting.await;
    }
}

async fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn refusal(asked: SocketAddr) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        let invalid = |message| Error::InvalidInput { subject: Some(Subject::Port(asked.port())), message };
        match source.kind() {
            io::ErrorKind::AddrInUse => invalid(format!(
                "{asked} of this host is taken: publish under another port, or under 0, which is one that is free"
            )),
            io::ErrorKind::AddrNotAvailable => {
                invalid(format!("this host has no address {}: publish under one of its own", asked.ip()))
            }
            io::ErrorKind::PermissionDenied => Error::Host {
                problem: format!("there is no permission to listen on {asked}"),
                remedy: "publish under a port from 1024 on, or run with CAP_NET_BIND_SERVICE".to_owned(),
                source: Some(source.into()),
            },
            _ => Error::failed(format!("listen on {asked}"))(source.into()),
        }
    }
}

/// Serves a listener until it is dropped, or the guest is closed. All connections end with it.
async fn accept(listener: TcpListener, agent: Arc<AgentClient>, guest_port: u16) {
    let (over, mut connections) = (agent.closed(), JoinSet::new());
    loop {
        tokio::select! {
            () = over.cancelled() => return,
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((client, _)) => _ = connections.spawn(carry(client, Arc::clone(&agent), guest_port)),
                // Such as a connection that was reset meanwhile, or a want of descriptors, which passes.
                Err(error) => {
                    tracing::debug!(%error, "a connection to a published port was not accepted");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, agent: Arc<AgentClient>, guest_port: u16) {
    // Dropped, it is reset, until it has ended in order.
    client.set_zero_linger().ok();
    let carried = async {
        client.set_nodelay(true)?;
        let mut guest = PortStream::open(&agent, guest_port, ()).await?;
        copy_bidirectional(&mut client, &mut guest).await
    };
    match carried.await {
        // What is on its way still arrives.
        Ok(_) => _ = SockRef::from(&client).set_linger(None),
        Err(error) => tracing::debug!(%error, guest_port, "a connection to a published port ended"),
    }
}

/// Of one port. More wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
const BREATH: Duration = Duration::from_millis(50);
