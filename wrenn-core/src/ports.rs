//! The guest's TCP ports.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::agent::error::AgentError;
use crate::error::{Error, Result, Subject};
use crate::network::port_stream::PortStream;
use crate::network::publish::PublishOptions;
use crate::sandbox::handle::Sandbox;
use crate::state::PublishedPort;

/// A TCP port that a process in the guest listens on, as [`Sandbox::ports`] lists it.
///
/// ```no_run
/// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
/// for port in sandbox.ports().await? {
///     println!("{}{}", port.number, if port.loopback_only { " (loopback only)" } else { "" });
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Port {
    /// The port's number.
    pub number: u16,
    /// Whether the process listens on the guest's loopback address only. The guest's agent forwards to such a port
    /// within a second, so [`Sandbox::connect`] reaches it too.
    pub loopback_only: bool,
}

impl Sandbox {
    /// Connects to a TCP port of the guest, through the sandbox's own network. No port of the host is opened, and other
    /// programs cannot reach the guest this way. The connection keeps the sandbox alive, and breaks when the sandbox is
    /// paused or ends.
    ///
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// let mut http = sandbox.connect(8000).await?;
    /// http.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    /// let mut answer = String::new();
    /// http.read_to_string(&mut answer).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::NotFound`] with the port where nothing listens on it, or something has listened on the loopback alone for less
    /// than a second; [`Error::Agent`] with [`AgentError::NotReachable`] where the guest does not answer within 10 s;
    /// [`Error::InvalidState`] where the sandbox does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling closes the connection.
    pub async fn connect(&self, port: u16) -> Result<PortStream> {
        let agent = Arc::clone(self.agent());
        let dial = async {
            let failed = |source: io::Error| match source.kind() {
                io::ErrorKind::ConnectionRefused => {
                    Error::not_found(Subject::Port(port), format!("nothing listens on port {port} of the guest"))
                }
                _ => Error::agent("connect to a port")(AgentError::NotReachable { source }),
            };
            PortStream::open(&agent, port, self.clone()).await.map_err(failed)
        };
        self.while_running("connect to a port", dial).await
    }

    /// Publishes a TCP port of the guest: a listener of the host's, whose connections are carried to that port. It is there
    /// for as long as the sandbox runs, and again after a resume, under the same address. A fork's children have none.
    ///
    /// By default it listens on the host's loopback, on a port that is free. Nothing needs to listen in the guest yet: a
    /// connection to a port where nothing does is reset. Each connection is a use of the sandbox. 1,024 at once are carried.
    ///
    /// # Ports that wake a sandbox
    /// With [`PublishOptions::wake`] the listener stays open in this program while the sandbox is paused. The first
    /// connection resumes the sandbox, once; it and all others wait for that, and are carried then. The connections that were
    /// open at the pause are reset. [`Host::events`](crate::Host::events) tells of each wake, and why one failed.
    ///
    /// Nobody asked for a sandbox that was woken, so its host keeps it: it runs until it is paused, is killed, or ends.
    /// [`Host::sandbox`](crate::Host::sandbox) gives a handle of it, whose drop ends nothing. With a time-to-live that counts
    /// from the last use and pauses, the sandbox runs only while somebody uses it:
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use std::time::Duration;
    ///
    /// use wrenn_core::{OnExpiry, PublishOptions, Sandbox, TtlFrom};
    ///
    /// let minute = Duration::from_secs(60);
    /// let idle = Sandbox::builder(host, "base").ttl(minute).ttl_from(TtlFrom::LastUse).on_expiry(OnExpiry::Pause);
    /// let sandbox = idle.create().await?;
    /// let server = sandbox.command("python3").args(["-m", "http.server", "8000"]).spawn().await?;
    /// let port = sandbox.publish(8000, PublishOptions::default().wake(true)).await?;
    /// println!("http://{}/", port.address);
    /// # drop(server);
    /// # Ok(()) }
    /// ```
    ///
    /// The port is closed with the last handle of the host and of its sandboxes, and by
    /// [`Host::shutdown`](crate::Host::shutdown). The next program that opens the data directory opens it by
    /// [`PausedSandbox::listen`](crate::PausedSandbox::listen). It is also closed where the sandbox ends in another way than
    /// by a pause, even if an earlier pause of it is kept.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn demo(sandbox: &wrenn_core::Sandbox) -> wrenn_core::Result<()> {
    /// use wrenn_core::PublishOptions;
    ///
    /// let server = sandbox.command("python3").args(["-m", "http.server", "8000"]).spawn().await?;
    /// let port = sandbox.publish(8000, PublishOptions::default().port(8080)).await?;
    /// println!("http://{}/", port.address);
    /// # drop(server);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for port 0 of the guest, a port of the host's that is taken, and an address that the host does
    /// not have; [`Error::Host`] for a port that this user may not listen on; [`Error::InvalidState`] where the sandbox
    /// does not run.
    ///
    /// # Cancel-Safety
    /// Cancelling publishes nothing, or what was asked for.
    pub async fn publish(&self, guest_port: u16, options: PublishOptions) -> Result<PublishedPort> {
        let open = self.publications().open(self.agent(), guest_port, options);
        self.while_running("publish a port", open).await
    }

    /// The ports of the guest that are published, in the order in which they were.
    #[must_use]
    pub fn published(&self) -> Vec<PublishedPort> {
        self.publications().list()
    }

    /// Closes the listener at an address of the host's, and resets its connections.
    ///
    /// # Errors
    /// [`Error::NotFound`] where no port of this sandbox is published there.
    ///
    /// # Cancel-Safety
    /// Cancelling closes it all the same.
    pub async fn unpublish(&self, address: SocketAddr) -> Result<()> {
        match self.publications().close(address).await {
            true => Ok(()),
            false => Err(Error::not_found(
                Subject::Port(address.port()),
                format!("no port of the guest is published at {address}; `Sandbox::published` lists those that are"),
            )),
        }
    }

    /// Lists the TCP ports that processes in the guest listen on, sorted by number, without the port of the guest's
    /// agent.
    ///
    /// # Errors
    /// As [`read_file`](Self::read_file).
    ///
    /// # Cancel-Safety
    /// Cancelling changes nothing.
    pub async fn ports(&self) -> Result<Vec<Port>> {
        let files = self.files();
        let (v4, v6) = tokio::try_join!(files.read("/proc/net/tcp"), async {
            match files.read("/proc/net/tcp6").await {
                Err(Error::NotFound { .. }) => Ok(bytes::Bytes::new()),
                read => read,
            }
        })?;
        Ok(listening(&[&String::from_utf8_lossy(&v4), &String::from_utf8_lossy(&v6)]))
    }
}

/// Finds the listeners in the kernel's tables of sockets.
fn listening(tables: &[&str]) -> Vec<Port> {
    let mut ports = BTreeMap::new();
    for (address, number) in tables.iter().flat_map(|table| table.lines()).filter_map(listener) {
        let loopback_only = is_loopback(address);
        ports.entry(number).and_modify(|known| *known &= loopback_only).or_insert(loopback_only);
    }
    ports.remove(&wrenn_envd::AGENT_PORT);
    ports.into_iter().map(|(number, loopback_only)| Port { number, loopback_only }).collect()
}

/// `0: 0100007F:1F90 00000000:0000 0A …`: its own address, the other end's, its state.
fn listener(line: &str) -> Option<(&str, u16)> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (own, _other, state) = (words.next()?, words.next()?, words.next()?);
    let (address, port) = own.split_once(':')?;
    (state == LISTEN).then_some((address, u16::from_str_radix(port, 16).ok()?))
}

/// The kernel prints words of the guest's byte order, which is little-endian.
fn is_loopback(address: &str) -> bool {
    match address.len() {
        8 => address.ends_with("7F"),
        _ => address == "00000000000000000000000001000000" || address.starts_with(V4_MAPPED) && address.ends_with("7F"),
    }
}

/// The number of the state, `TCP_LISTEN`.
const LISTEN: &str = "0A";
/// `::ffff:0.0.0.0/96`.
const V4_MAPPED: &str = "0000000000000000FFFF0000";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fake::{FakeAgent, done};
    use crate::sandbox::fake;

    #[tokio::test]
    async fn a_port_that_nothing_listens_on_is_named() {
        let (_agent, client) = FakeAgent::start(|_, _| done()).await;
        let fake = fake::sandbox(client).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        fake.sandbox.connect(port).await.unwrap();
        drop(listener);
        let error = fake.sandbox.connect(port).await.unwrap_err();
        assert_eq!((error.code(), error.subject()), ("not_found", Some(Subject::Port(port))), "{error:?}");
        assert!(error.to_string().contains(&format!("nothing listens on port {port} of the guest")), "{error}");
    }

    const V4: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 1500FEA9:C33F 1600FEA9:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1 0 100 0 0 10 0
";
    const V6: &str = "\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 00000000000000000000000000000000:C33F 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: 0000000000000000FFFF00000100007F:1F92 00000000000000000000000000000000:0000 0A 00000000:00000000
";

    #[test]
    fn listeners_are_told_by_number_and_reach() {
        let port = |number, loopback_only| Port { number, loopback_only };
        let expected = [port(22, false), port(8080, true), port(8081, true), port(8082, true)];
        assert_eq!(listening(&[V4, V6]), expected, "without connections, and without the agent");
        assert_eq!(listening(&["", "garbage\n1: x 0A"]), []);
    }
}
