//! A listener of the host's, whose connections are carried to a port of a guest.
//!
//! ```text
//!  bind ──▶ serve ──the guest is closed──▶ called ──the guest runs again──▶ serve
//!            │ ▲                            │ ▲
//!            └─┘ Passage::Held              └─┘ reset, where it cannot run again
//! ```
//!
//! The socket is the same all the time. So a client that connects while its guest is being paused, is paused, or is being
//! resumed waits in the kernel's queue, or among those that were accepted and not carried, and is not refused.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use socket2::SockRef;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::agent::client::AgentClient;
use crate::error::{Error, Result, Subject};
use crate::network::port_stream::PortStream;

/// A socket that listens. Dropping it closes it, and resets the connections that wait.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    /// What was accepted and is not carried yet. Dropped, these are reset.
    waiting: Mutex<Vec<TcpStream>>,
}

/// Whether new connections are carried to a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Passage {
    #[default]
    Open,
    /// The guest is about to be paused: new connections wait.
    Held,
}

impl Listener {
    /// # Errors
    /// [`Error::InvalidInput`] for a port that is taken and an address that the host does not have, [`Error::Host`] for a port
    /// that this user may not listen on.
    pub(super) async fn bind(asked: SocketAddr) -> Result<Arc<Self>> {
        let bind = async {
            let socket = TcpListener::bind(asked).await?;
            let address = socket.local_addr()?;
            Ok(Arc::new(Self { socket, address, waiting: Mutex::default() }))
        };
        bind.await.map_err(refusal(asked))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Carries connections to a port of a guest until the guest is closed. Those that are carried end then; those that are
    /// not carried yet wait for the next guest.
    pub(super) async fn serve(&self, agent: Arc<AgentClient>, guest_port: u16, mut passage: watch::Receiver<Passage>) {
        let (over, mut connections, holds) = (agent.closed(), JoinSet::new(), passage.clone());
        let begin = |client| carry(client, Arc::clone(&agent), guest_port, holds.clone());
        loop {
            let is_open = *passage.borrow_and_update() == Passage::Open;
            if is_open {
                for client in std::mem::take(&mut *self.waiting()) {
                    connections.spawn(begin(client));
                }
            }
            tokio::select! {
                biased;
                () = over.cancelled() => break,
                Ok(()) = passage.changed() => {}
                Some(ended) = connections.join_next() => self.keep(ended),
                client = self.accept(), if is_open && connections.len() < CONNECTIONS_MAX => {
                    _ = connections.spawn(begin(client));
                }
            }
        }
        while let Some(ended) = connections.join_next().await {
            self.keep(ended);
        }
    }

    /// Waits until a connection waits for a guest.
    ///
    /// # Cancel-Safety
    /// Cancelling loses no connection.
    pub(crate) async fn called(&self) {
        if self.waiting().is_empty() {
            let client = self.accept().await;
            self.waiting().push(client);
        }
    }

    /// Resets the connections that wait.
    pub(crate) fn reset(&self) {
        self.waiting().clear();
        for _ in 0..QUEUE_MAX {
            match self.socket.accept().now_or_never() {
                Some(Ok((client, _))) => drop(resettable(client)),
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Takes back a connection that was not carried.
    fn keep(&self, ended: Result<Option<TcpStream>, JoinError>) {
        self.waiting().extend(ended.ok().flatten());
    }

    async fn accept(&self) -> TcpStream {
        loop {
            match self.socket.accept().await {
                Ok((client, _)) => return resettable(client),
                // Such as a connection that was reset meanwhile, or a want of descriptors, which passes.
                Err(error) => {
                    tracing::debug!(%error, "a connection to a published port was not accepted");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped, it is reset, until it has ended in order.
fn resettable(client: TcpStream) -> TcpStream {
    // Where this option cannot be set, a client is told of an end in order.
    client.set_zero_linger().ok();
    client
}

/// Carries a connection to its end. Returns it where it had not begun when the passage was held, or the guest closed.
async fn carry(
    mut client: TcpStream,
    agent: Arc<AgentClient>,
    guest_port: u16,
    passage: watch::Receiver<Passage>,
) -> Option<TcpStream> {
    let over = agent.closed();
    let opened = tokio::select! {
        biased;
        () = over.cancelled() => return Some(client),
        () = held(passage) => return Some(client),
        opened = PortStream::open(&agent, guest_port, ()) => opened,
    };
    let carried = async {
        client.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut opened?).await
    };
    let carried = tokio::select! {
        carried = carried => carried,
        // One whose client takes nothing would not notice.
        () = over.cancelled() => return None,
    };
    match carried {
        // What is on its way still arrives.
        Ok(_) => _ = SockRef::from(&client).set_linger(None),
        Err(error) => tracing::debug!(%error, guest_port, "a connection to a published port ended"),
    }
    None
}

async fn held(mut passage: watch::Receiver<Passage>) {
    if passage.wait_for(|passage| *passage == Passage::Held).await.is_err() {
        // Nobody is left to hold it.
        std::future::pending().await
    }
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

/// Of one port, that are carried at once. More wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// What the kernel keeps at most of connections that nobody has accepted: the runtime asks for 1,024.
const QUEUE_MAX: usize = 1024;
const BREATH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::agent::fake::{FakeAgent, done};

    async fn soon<T>(work: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("it does not wait for ever")
    }

    /// A port of the guest's that sends back what it gets.
    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        port
    }

    /// A client that has sent a byte.
    async fn client(listener: &Listener) -> TcpStream {
        let mut client = TcpStream::connect(listener.address()).await.unwrap();
        client.write_all(b"x").await.unwrap();
        client
    }

    fn serve(
        listener: &Arc<Listener>,
        agent: &Arc<AgentClient>,
        port: u16,
        passage: &watch::Sender<Passage>,
    ) -> JoinHandle<()> {
        let (listener, agent, passage) = (Arc::clone(listener), Arc::clone(agent), passage.subscribe());
        tokio::spawn(async move { listener.serve(agent, port, passage).await })
    }

    /// Lets others do what they can do without time.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_a_guest_was_not_reached_for_waits_for_the_next_one_and_what_was_carried_is_reset() {
        let (port, passage) = (echo().await, watch::Sender::new(Passage::Open));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (first, agent) = FakeAgent::start(|_, _| done()).await;
        let serving = serve(&listener, &agent, port, &passage);
        let mut carried = client(&listener).await;
        assert_eq!(soon(carried.read_u8()).await.unwrap(), b'x');
        first.reachable.store(false, Ordering::SeqCst);
        let mut early = client(&listener).await;
        settle().await;
        passage.send_replace(Passage::Held);
        let mut late = client(&listener).await;
        settle().await;
        agent.close();
        soon(serving).await.unwrap();
        assert_eq!(soon(carried.read_u8()).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        soon(listener.called()).await;

        let (_second, agent) = FakeAgent::start(|_, _| done()).await;
        let passage = watch::Sender::new(Passage::Open);
        let _serving = serve(&listener, &agent, port, &passage);
        for client in [&mut early, &mut late] {
            assert_eq!(soon(client.read_u8()).await.unwrap(), b'x');
        }
    }

    #[tokio::test]
    async fn those_that_wait_while_a_pause_is_tried_are_carried_after_its_failure() {
        let (port, passage) = (echo().await, watch::Sender::new(Passage::Held));
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (_agent, agent) = FakeAgent::start(|_, _| done()).await;
        let _serving = serve(&listener, &agent, port, &passage);
        let mut waits = client(&listener).await;
        settle().await;
        assert!(waits.read_u8().now_or_never().is_none());
        passage.send_replace(Passage::Open);
        assert_eq!(soon(waits.read_u8()).await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_reset_is_of_those_that_wait_and_of_no_other() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert!(listener.called().now_or_never().is_none());
        let mut waiting = [client(&listener).await, client(&listener).await];
        soon(listener.called()).await;
        listener.reset();
        for client in &mut waiting {
            assert_eq!(soon(client.read_u8()).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        assert!(listener.called().now_or_never().is_none(), "nobody waits any more");
        let _later = client(&listener).await;
        soon(listener.called()).await;
    }
}
