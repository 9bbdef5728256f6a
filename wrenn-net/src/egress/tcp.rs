//! A guest's TCP connections: dialled first, and answered then.
//!
//! ```text
//!  SYN ─▶ policy ─▶ dial ──────▶ dialled: the SYN goes on to the listener ─▶ accepted ─▶ joined
//!           │         └────────▶ refused, unreachable: the guest is told
//!           ├─▶ refused: reset
//!           └─▶ by a name alone: the SYN goes on ─▶ accepted ─▶ its name is read ─▶ policy ─▶ resolved, dialled ─▶ joined
//! ```
//!
//! Where the policy has rules for the port, the name of what was dialled is read as well. If there are rules for the name,
//! the connection is intercepted in place of joined, and leads to an address of that name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::egress::both::{Both, either};
use crate::egress::connections::{Begun, Connections, Next, Open, Pair};
use crate::egress::counters::Way;
use crate::egress::dial::{Dialler, Made};
use crate::egress::dialled::Dialled;
use crate::egress::dns;
use crate::egress::intercept::{self, Interception, Scheme, Target};
use crate::egress::relay::relay;
use crate::egress::shared::{Destination, Shared, is_hosts};
use crate::egress::sniff::{FIRST_MAX, FIRST_MAX_WITH_RULES, Told, is_tls, read_name};
use crate::packet::{Echo, Syn, Unreachable};
use crate::packet_socket::PacketSocket;
use crate::policy::{Protocol, Refusal, Verdict};
use crate::slot::{guest_address, is_host};

/// The TCP of one guest.
#[derive(Debug)]
pub(super) struct Tcp {
    shared: Arc<Shared>,
    connections: Arc<Connections>,
    dials: Arc<Semaphore>,
    dialler: Dialler,
    interception: Option<Interception>,
    intercepted: Semaphore,
}

impl Tcp {
    pub(super) fn new(
        shared: Arc<Shared>,
        connections: Arc<Connections>,
        interception: Option<Interception>,
    ) -> Arc<Self> {
        let dials = Arc::new(Semaphore::new(shared.limits.dials));
        let dialler = Dialler::new(Arc::clone(&shared), interception.clone());
        let intercepted = Semaphore::new(INTERCEPTED_MAX);
        Arc::new(Self { shared, connections, dials, dialler, interception, intercepted })
    }

    /// Serves until it is dropped, or a socket fails. All that it has begun ends with it. Echo requests, which the same socket
    /// sees, go to `echoes`.
    pub(super) async fn serve(
        self: Arc<Self>,
        firsts: AsyncFd<Arc<PacketSocket>>,
        echoes: mpsc::Sender<Echo>,
        listeners: Both<TcpListener>,
    ) -> io::Error {
        let (mut dials, mut open) = (JoinSet::new(), JoinSet::new());
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                syn = next_syn(&firsts, &echoes) => match syn {
                    Ok(syn) => self.begin(syn, &mut dials),
                    Err(error) => return error,
                },
                accepted = accept(&listeners) => match accepted {
                    Ok((guest, from)) => self.accept(guest, from, &mut open),
                    // Such as a connection that was reset meanwhile, or a want of descriptors, which passes.
                    Err(error) => {
                        tracing::debug!(%error, "a guest's connection was not accepted");
                        tokio::time::sleep(BREATH).await;
                    }
                },
                Some(_) = dials.join_next() => {}
                Some(ended) = open.join_next_with_id() => self.note_end(ended),
                _ = sweep.tick() => self.connections.sweep(),
            }
        }
    }

    fn begin(self: &Arc<Self>, syn: Syn, dials: &mut JoinSet<()>) {
        let pair = Pair { port: syn.from.port(), to: syn.to };
        if is_host(syn.to.ip()) {
            // The slot's own kernel has answered it.
            return;
        }
        // One that was lost is sent again.
        if !self.shared.may_begin() {
            return;
        }
        match self.connections.begin(pair, self.shared.limits.connections, &self.shared.budget) {
            Next::Begin => {}
            Next::Wait => {
                if let Some(syn) = self.connections.lost(pair) {
                    self.shared.sender.to_listener(&syn.whole());
                }
                return;
            }
            Next::Full => return self.refuse(pair, &syn, Refusal::Limit),
        }
        if syn.to.port() == DNS_PORT {
            return self.hand_over(pair, Begun::Questions, &syn);
        }
        match self.shared.of_address(Protocol::Tcp, syn.to) {
            Verdict::Refused(refusal) => self.refuse(pair, &syn, refusal),
            Verdict::Named => self.hand_over(pair, Begun::Named, &syn),
            Verdict::Reached => match Arc::clone(&self.dials).try_acquire_owned() {
                Ok(permit) => {
                    let this = Arc::clone(self);
                    dials.spawn(async move {
                        this.dial(pair, &syn).await;
                        drop(permit);
                    });
                }
                // The guest asks again in a second.
                Err(_) => self.connections.give_up(pair),
            },
        }
    }

    async fn dial(&self, pair: Pair, syn: &Syn) {
        let answer = match self.dialler.dial(&[syn.to.ip()], syn.to.port()).await {
            Ok(made) => return self.hand_over(pair, Begun::Dialled(made), syn),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => syn.reset(),
                io::ErrorKind::NetworkUnreachable => syn.unreachable(Unreachable::Network),
                _ => {
                    tracing::debug!(%error, to = %syn.to, "a guest's connection was not made");
                    syn.unreachable(Unreachable::Host)
                }
            },
        };
        self.connections.give_up(pair);
        self.shared.sender.to_guest(&answer);
    }

    fn hand_over(&self, pair: Pair, begun: Begun, syn: &Syn) {
        self.connections.hand_over(pair, begun, syn.clone());
        self.shared.sender.to_listener(&syn.whole());
    }

    fn refuse(&self, pair: Pair, syn: &Syn, refusal: Refusal) {
        if refusal != Refusal::Limit {
            self.connections.give_up(pair);
        }
        // What the guest sees has been told.
        self.shared.refuse(&Destination::Address { address: syn.to }, Protocol::Tcp, refusal);
        self.shared.sender.to_guest(&syn.reset());
    }

    fn accept(self: &Arc<Self>, guest: TcpStream, from: SocketAddr, open: &mut JoinSet<Pair>) {
        // Dropped, it is reset, until it has ended in order.
        guest.set_zero_linger().ok();
        let Ok(to) = guest.local_addr() else { return };
        let to = SocketAddr::new(to.ip(), to.port());
        let pair = Pair { port: from.port(), to };
        let Some((begun, share)) = self.connections.accepted(pair) else { return };
        let this = Arc::clone(self);
        let carry = async move {
            if let Err(error) = this.carry(pair, guest, begun).await {
                tracing::debug!(%error, ?pair, "a guest's connection ended");
            }
            pair
        };
        self.connections.opened(pair, || Open {
            to,
            name: None,
            led_to: None,
            route: self.shared.current().1,
            abort: open.spawn(carry),
            _share: share,
        });
    }

    fn note_end(&self, ended: Result<(tokio::task::Id, Pair), tokio::task::JoinError>) {
        // One that was aborted was forgotten by whoever did it.
        if let Ok((id, pair)) = ended {
            self.connections.closed(pair, id);
        }
    }

    async fn carry(&self, pair: Pair, mut guest: TcpStream, begun: Begun) -> io::Result<()> {
        let (mut upstream, head, target) = match begun {
            Begun::Dialling => return Err(io::Error::other("it was accepted before it was dialled")),
            Begun::Questions => return dns::answer_connection(Arc::clone(&self.shared), guest).await,
            // The policy may have changed since it was dialled. From here on a change closes what is open.
            Begun::Dialled(made) if made.route != self.shared.current().1 => {
                return Err(io::Error::other("it was dialled by another way than connections leave by now"));
            }
            Begun::Dialled(Made { dialled: mut upstream, .. }) => {
                match self.shared.of_address(Protocol::Tcp, pair.to) {
                    Verdict::Reached if self.shared.policy().has_rules_at(pair.to.port()) => {
                        // A server that is gone is found out while both are silent.
                        keep_alive(upstream.tcp())?;
                        // A socket may be said to be readable before anything has come.
                        let mut first = [0];
                        let (told, head) = tokio::select! {
                            biased;
                            peeked = guest.peek(&mut first) => {
                                peeked?;
                                read_name(&mut guest, FIRST_MAX_WITH_RULES).await?
                            }
                            // The server begins, or has ended.
                            _ = upstream.begins() => (Told::Other, Vec::new()),
                        };
                        let target = self.target(pair, &told, &head);
                        let Some(upstream) = self.led_to(pair, target.as_ref(), upstream).await? else { return Ok(()) };
                        (upstream, head, target)
                    }
                    Verdict::Reached => (upstream, Vec::new(), None),
                    Verdict::Named => return self.end_refused(pair, Refusal::Name),
                    Verdict::Refused(refusal) => return self.end_refused(pair, refusal),
                }
            }
            Begun::Named => {
                let has_rules = self.shared.policy().has_rules_at(pair.to.port());
                let first_max = if has_rules { FIRST_MAX_WITH_RULES } else { FIRST_MAX };
                let (told, head) = read_name(&mut guest, first_max).await?;
                let target = self.target(pair, &told, &head);
                let Some(upstream) = self.dial_named(pair, told).await? else { return Ok(()) };
                (upstream, head, target)
            }
        };
        upstream.tcp().set_zero_linger()?;
        upstream.tcp().set_nodelay(true)?;
        keep_alive(upstream.tcp())?;
        guest.set_nodelay(true)?;
        if let (Some(target), Some(interception)) = (target, &self.interception) {
            let Ok(_permit) = self.intercepted.try_acquire() else { return self.end_refused(pair, Refusal::Limit) };
            self.shared.counters.count_connection();
            return intercept::carry(Arc::clone(&self.shared), interception, target, (guest, head), upstream).await;
        }
        self.shared.carry(Way::Out, head.len()).await;
        upstream.write_all(&head).await?;
        upstream.flush().await?;
        self.shared.counters.count_connection();
        relay(guest, upstream, &self.shared).await
    }

    /// Tells of a connection that is refused after it was accepted, and ends with this.
    fn end_refused(&self, pair: Pair, refusal: Refusal) -> io::Result<()> {
        self.shared.refuse(&Destination::Address { address: pair.to }, Protocol::Tcp, refusal);
        Ok(())
    }

    /// The server that a connection is intercepted for: where it tells a name that there are rules for.
    fn target(&self, pair: Pair, told: &Told, head: &[u8]) -> Option<Target> {
        let (Told::Name(name), Some(_)) = (told, &self.interception) else { return None };
        let port = pair.to.port();
        self.shared.policy().rules_of(name, port).next()?;
        let scheme = if is_tls(head) { Scheme::Https } else { Scheme::Http };
        Some(Target { name: name.clone(), port, scheme })
    }

    /// Where a connection leads that was dialled: there, unless it is intercepted, and its name is elsewhere. A secret is
    /// for the server of its name, and not for one that the guest has chosen, though that be certified as well. `None`
    /// where that is refused.
    async fn led_to(&self, pair: Pair, target: Option<&Target>, dialled: Dialled) -> io::Result<Option<Dialled>> {
        let Some(target) = target else { return Ok(Some(dialled)) };
        let addresses = self.shared.names().addresses_of(&target.name, pair.to.ip()).await?;
        if addresses.contains(&pair.to.ip()) {
            return Ok(Some(dialled));
        }
        drop(dialled);
        let verdict = |address: &IpAddr| self.shared.of_address(Protocol::Tcp, SocketAddr::new(*address, target.port));
        let reached = addresses.iter().copied().filter(|address| verdict(address) == Verdict::Reached);
        let reached: Vec<IpAddr> = reached.collect();
        if reached.is_empty() {
            let refusal = addresses.first().map(verdict);
            let refusal = if let Some(Verdict::Refused(refusal)) = refusal { refusal } else { Refusal::Name };
            let service = Destination::Service { name: target.name.clone(), port: target.port };
            self.shared.refuse(&service, Protocol::Tcp, refusal);
            return Ok(None);
        }
        let Made { dialled: upstream, to, .. } = self.dialler.dial(&reached, target.port).await?;
        self.connections.led(pair, to);
        // A change of the policy while it was dialled has passed it by.
        match verdict(&to.ip()) {
            Verdict::Reached => Ok(Some(upstream)),
            Verdict::Refused(refusal) => self.end_refused(pair, refusal).map(|()| None),
            Verdict::Named => self.end_refused(pair, Refusal::Name).map(|()| None),
        }
    }

    /// Dials the name that a connection told; `None` where it is refused.
    async fn dial_named(&self, pair: Pair, told: Told) -> io::Result<Option<Dialled>> {
        let (to, protocol) = (pair.to, Protocol::Tcp);
        match told {
            Told::Name(name) if self.shared.policy().has_name(protocol, &name, to.port()) => {
                let addresses = self.shared.names().addresses_of(&name, to.ip()).await?;
                let may_be_dialled = |address: &IpAddr| {
                    self.shared.policy().may_mean_by_name(protocol, *address, to.port()) && !is_hosts(*address)
                };
                let addresses: Vec<IpAddr> = addresses.into_iter().filter(may_be_dialled).collect();
                if addresses.is_empty() {
                    let service = Destination::Service { name, port: to.port() };
                    self.shared.refuse(&service, protocol, Refusal::Private);
                    return Ok(None);
                }
                self.connections.named(pair, name);
                self.dialler.dial(&addresses, to.port()).await.map(|made| Some(made.dialled))
            }
            Told::Name(name) => {
                let service = Destination::Service { name, port: to.port() };
                self.shared.refuse(&service, protocol, Refusal::Name);
                Ok(None)
            }
            // The guest was told this address for a name that is allowed, and speaks what has no name.
            Told::Other if self.shared.name_told(protocol, to).is_some() => {
                if let Some(name) = self.shared.name_told(protocol, to) {
                    self.connections.named(pair, name);
                }
                self.dialler.dial(&[to.ip()], to.port()).await.map(|made| Some(made.dialled))
            }
            Told::Other | Told::Nameless => {
                self.shared.refuse(&Destination::Address { address: to }, protocol, Refusal::Name);
                Ok(None)
            }
        }
    }
}

/// A guest's own connection ends in the slot.
fn keep_alive(upstream: &TcpStream) -> io::Result<()> {
    SockRef::from(upstream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER))
}

async fn accept(listeners: &Both<TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    either(listeners.v4.accept(), listeners.v6.as_ref().map(TcpListener::accept)).await
}

async fn next_syn(socket: &AsyncFd<Arc<PacketSocket>>, echoes: &mpsc::Sender<Echo>) -> io::Result<Syn> {
    let mut buffer = [0; PACKET_BYTES_MAX];
    loop {
        let mut ready = socket.readable().await?;
        let read = ready.try_io(|socket| socket.get_ref().read(&mut buffer));
        match read {
            Ok(Ok(len)) => {
                let packet = buffer.get(..len).unwrap_or_default();
                if let Some(syn) = Syn::read(packet).filter(|syn| may_be_from(syn.from.ip())) {
                    return Ok(syn);
                }
                if let Some(echo) = Echo::read(packet).filter(|echo| may_be_from(echo.from)) {
                    // One that is too many is lost.
                    echoes.try_send(echo).ok();
                }
            }
            // The tap is down for as long as no VMM has it.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// Whether a packet may have this source. An answer to another IPv6 address than the guest's could go to another link.
fn may_be_from(address: IpAddr) -> bool {
    address.is_ipv4() || address == guest_address(address)
}

const DNS_PORT: u16 = 53;
/// Of an Ethernet frame.
const PACKET_BYTES_MAX: usize = 1500;
/// Of one guest: with data that nobody reads, each may have some two MiB.
const INTERCEPTED_MAX: usize = 256;
/// Then one that is gone is found out within some minutes, and the guest told.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(120);
const SWEEP: Duration = Duration::from_secs(30);
const BREATH: Duration = Duration::from_millis(50);
