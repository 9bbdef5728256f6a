//! A guest's datagrams, by flow: a port of the guest and an address have a socket of the host's own.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::egress::both::{Both, either};
use crate::egress::connections::Pair;
use crate::egress::counters::Way;
use crate::egress::dns;
use crate::egress::flows::Flows;
use crate::egress::shared::{Destination, Shared};
use crate::packet::{self, Unreachable};
use crate::policy::{Protocol, Refusal};

/// A datagram of the guest's.
struct Datagram<'a> {
    from: SocketAddr,
    to: SocketAddr,
    payload: &'a [u8],
}

/// Serves until it is dropped, or the socket fails. All flows end with it. `changed` tells when the policy has.
pub(super) async fn serve(
    shared: Arc<Shared>,
    sockets: Both<AsyncFd<OwnedFd>>,
    mut changed: tokio::sync::watch::Receiver<()>,
) -> io::Error {
    let (mut flows, mut tasks) = (Flows::<Pair, UdpSocket>::default(), JoinSet::new());
    let questions = Arc::new(Semaphore::new(shared.limits.questions));
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        tokio::select! {
            received = receive(&sockets, &mut buffer) => {
                let datagram = match received {
                    Ok((from, to, len)) => Datagram { from, to, payload: buffer.get(..len).unwrap_or_default() },
                    Err(error) => return error,
                };
                if datagram.to.port() == DNS_PORT {
                    if !shared.may_begin() {
                        continue;
                    }
                    ask(&shared, &questions, &datagram, &mut tasks);
                } else if let Err(error) = send(&shared, &mut flows, &datagram, &mut tasks).await {
                    tracing::debug!(%error, to = %datagram.to, "a guest's datagram was not sent");
                }
            }
            Some(ended) = tasks.join_next() => if let Ok(Some(pair)) = ended { flows.ended(&pair); },
            Ok(()) = changed.changed() => flows.sift(|pair| refusal(&shared, pair.to).is_none()),
        }
    }
}

fn ask(shared: &Arc<Shared>, questions: &Arc<Semaphore>, datagram: &Datagram<'_>, tasks: &mut JoinSet<Option<Pair>>) {
    // One that is too many is lost, and asked again.
    let Ok(permit) = Arc::clone(questions).try_acquire_owned() else { return };
    let (shared, question) = (Arc::clone(shared), datagram.payload.to_vec());
    let (from, to) = (datagram.from, datagram.to);
    tasks.spawn(async move {
        if let Some(answer) = dns::answer_datagram(&shared, &question).await {
            packet::datagram(to, from, &answer).iter().for_each(|packet| shared.sender.to_guest(packet));
        }
        drop(permit);
        None
    });
}

async fn send(
    shared: &Arc<Shared>,
    flows: &mut Flows<Pair, UdpSocket>,
    datagram: &Datagram<'_>,
    tasks: &mut JoinSet<Option<Pair>>,
) -> io::Result<()> {
    let pair = Pair { port: datagram.from.port(), to: datagram.to };
    let socket = match flows.used(&pair) {
        Some(socket) => socket,
        None => match begin(shared, flows, datagram, tasks).await? {
            Some(socket) => socket,
            None => return Ok(()),
        },
    };
    if !shared.carries(Way::Out, datagram.payload.len()) {
        return Ok(());
    }
    // What does not fit is lost, and an error is that of an earlier one.
    nix::sys::socket::send(socket.as_raw_fd(), datagram.payload, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// Begins a flow; `None` where it is refused, or lost.
async fn begin(
    shared: &Arc<Shared>,
    flows: &mut Flows<Pair, UdpSocket>,
    datagram: &Datagram<'_>,
    tasks: &mut JoinSet<Option<Pair>>,
) -> io::Result<Option<Arc<UdpSocket>>> {
    let (from, to) = (datagram.from, datagram.to);
    if !shared.may_begin() {
        return Ok(None);
    }
    let share = match flows.room(refusal(shared, to), shared.limits.flows, &shared.budget) {
        Ok(share) => share,
        Err(refusal) => {
            shared.refuse(&Destination::Address { address: to }, Protocol::Udp, refusal);
            let answer = packet::undelivered(from, to, datagram.payload, Unreachable::Prohibited);
            shared.sender.to_guest(&answer);
            return Ok(None);
        }
    };
    let socket = match connect(to).await {
        Ok(socket) => socket,
        // Such as a host without a way out by IPv6. That there is no way is nothing that a kernel tells its programs.
        Err(error) => {
            let answer = packet::undelivered(from, to, datagram.payload, Unreachable::Port);
            shared.sender.to_guest(&answer);
            return Err(error);
        }
    };
    let (socket, pair) = (Arc::new(socket), Pair { port: from.port(), to });
    let answers = answers(Arc::clone(shared), Arc::clone(&socket), from, to);
    let abort = tasks.spawn(async move {
        answers.await;
        Some(pair)
    });
    shared.counters.count_flow();
    flows.add(pair, Arc::clone(&socket), share, abort);
    Ok(Some(socket))
}

async fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Why an address is not reached by UDP, if it is not.
fn refusal(shared: &Shared, to: SocketAddr) -> Option<Refusal> {
    let is_named = || shared.name_told(Protocol::Udp, to).is_some();
    shared.refusal_of_datagram(shared.of_address(Protocol::Udp, to), is_named)
}

/// Carries answers to the guest, until there were none for a while.
async fn answers(shared: Arc<Shared>, socket: Arc<UdpSocket>, guest: SocketAddr, from: SocketAddr) {
    while let Ok(Ok(ready)) = timeout(IDLE_MAX, socket.ready(Interest::READABLE | Interest::ERROR)).await {
        if ready.is_error() {
            // Taken, it is no longer to be waited for.
            let taken = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            socket.try_io(Interest::ERROR, taken).ok();
            // Nobody is there, or nobody listens.
            match socket.take_error() {
                Ok(Some(error)) => {
                    tracing::debug!(%error, %from, "a guest's datagram was not delivered");
                    shared.sender.to_guest(&packet::undelivered(guest, from, &[], Unreachable::Port));
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
        // The buffer is there for as long as answers come: most flows are idle most of the time.
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match socket.try_recv(&mut buffer) {
                Ok(len) => {
                    let payload = buffer.get(..len).unwrap_or_default();
                    if shared.carries(Way::In, len) {
                        packet::datagram(from, guest, payload).iter().for_each(|packet| shared.sender.to_guest(packet));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, %from, "a guest's datagram was not delivered");
                    shared.sender.to_guest(&packet::undelivered(guest, from, &[], Unreachable::Port));
                    break;
                }
            }
        }
    }
}

/// Where a datagram comes from and was sent to, and how long it is.
async fn receive(sockets: &Both<AsyncFd<OwnedFd>>, buffer: &mut [u8]) -> io::Result<(SocketAddr, SocketAddr, usize)> {
    loop {
        let mut ready = either(sockets.v4.readable(), sockets.v6.as_ref().map(AsyncFd::readable)).await?;
        let received = ready.try_io(|socket| {
            let mut space = nix::cmsg_space!(nix::libc::sockaddr_in6);
            let mut pieces = [IoSliceMut::new(buffer)];
            let fd = socket.get_ref().as_raw_fd();
            let message = recvmsg::<SockaddrStorage>(fd, &mut pieces, Some(&mut space), MsgFlags::empty())?;
            let wanted = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4OrigDstAddr(address) => Some(of_v4(SockaddrIn::from(address))),
                ControlMessageOwned::Ipv6OrigDstAddr(address) => Some(of_v6(SockaddrIn6::from(address))),
                _ => None,
            });
            let from = message.address.as_ref().and_then(|from| {
                let v4 = from.as_sockaddr_in().map(|from| of_v4(*from));
                v4.or_else(|| from.as_sockaddr_in6().map(|from| of_v6(*from)))
            });
            Ok(from.zip(wanted).map(|(from, to)| (from, to, message.bytes)))
        });
        match received {
            Ok(Ok(Some(found))) => return Ok(found),
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

fn of_v4(address: SockaddrIn) -> SocketAddr {
    SocketAddrV4::from(address).into()
}

/// Without what is not told by the packet, or does not matter.
fn of_v6(address: SockaddrIn6) -> SocketAddr {
    let address = SocketAddrV6::from(address);
    SocketAddr::new((*address.ip()).into(), address.port())
}

const DNS_PORT: u16 = 53;
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// RFC 4787 asks for two minutes and more; QUIC and the like keep their flows alive within 30 seconds.
const IDLE_MAX: Duration = Duration::from_secs(120);
