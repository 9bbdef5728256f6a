//! A guest's echo requests (`ping`), by flow: an identifier of the guest's and an address have a socket of the host's own.
//!
//! ```text
//!  request ─▶ policy ─▶ a flow's socket ─▶ reply ───────▶ the reply once more, with the guest's own numbers
//!               │             └──────────▶ unreachable ─▶ the guest is told
//!               └─▶ refused: prohibited
//! ```

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::egress::counters::Way;
use crate::egress::echo_socket::{EchoSocket, Heard, why_not};
use crate::egress::flows::Flows;
use crate::egress::shared::{Destination, Shared};
use crate::packet::{Echo, Unreachable};
use crate::policy::{Protocol, Refusal};
use crate::slot::is_host;

/// A program of the guest's that asks, and whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Asking {
    identifier: u16,
    to: IpAddr,
}

/// Serves until it is dropped, or nobody sends requests any more. All flows end with it. `changed` tells when the policy has.
pub(super) async fn serve(shared: Arc<Shared>, mut requests: mpsc::Receiver<Echo>, mut changed: watch::Receiver<()>) {
    let (mut flows, mut tasks) = (Flows::default(), JoinSet::new());
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                // The slot's own kernel has answered what is for it.
                Some(echo) if is_host(echo.to) => {}
                Some(echo) => send(&shared, &mut flows, &echo, &mut tasks),
                None => return,
            },
            Some(ended) = tasks.join_next() => if let Ok(asking) = ended { flows.ended(&asking); },
            Ok(()) = changed.changed() => flows.sift(|asking| refusal(&shared, asking.to).is_none()),
        }
    }
}

fn send(shared: &Arc<Shared>, flows: &mut Flows<Asking, EchoSocket>, echo: &Echo, tasks: &mut JoinSet<Asking>) {
    let known = flows.used(&Asking { identifier: echo.identifier, to: echo.to });
    let socket = match known.map_or_else(|| begin(shared, flows, echo, tasks), |socket| Ok(Some(socket))) {
        Ok(Some(socket)) => socket,
        Ok(None) => return,
        Err(error) => return undelivered(shared, echo, &error),
    };
    if !shared.carries(Way::Out, echo.payload.len()) {
        return;
    }
    shared.counters.count_echo();
    if let Err(error) = socket.send(echo) {
        undelivered(shared, echo, &error);
    }
}

fn undelivered(shared: &Shared, echo: &Echo, error: &io::Error) {
    tracing::debug!(%error, to = %echo.to, "a guest's echo request was not sent");
    shared.sender.to_guest(&echo.unreachable(why_not(error)));
}

/// Begins a flow; `None` where it is refused, or lost.
fn begin(
    shared: &Arc<Shared>,
    flows: &mut Flows<Asking, EchoSocket>,
    echo: &Echo,
    tasks: &mut JoinSet<Asking>,
) -> io::Result<Option<Arc<EchoSocket>>> {
    if !shared.may_begin() {
        return Ok(None);
    }
    let share = match flows.room(refusal(shared, echo.to), shared.limits.echoes, &shared.budget) {
        Ok(share) => share,
        Err(refusal) => {
            shared.refuse(&Destination::Echo { address: echo.to }, Protocol::Icmp, refusal);
            shared.sender.to_guest(&echo.unreachable(Unreachable::Prohibited));
            return Ok(None);
        }
    };
    let socket = Arc::new(EchoSocket::connect(echo.to)?);
    let asking = Asking { identifier: echo.identifier, to: echo.to };
    let answers = answers(Arc::clone(shared), Arc::clone(&socket), Echo { payload: Vec::new(), ..echo.clone() });
    let abort = tasks.spawn(async move {
        answers.await;
        asking
    });
    flows.add(asking, Arc::clone(&socket), share, abort);
    Ok(Some(socket))
}

/// Why an address is sent no echo requests, if it is sent none.
fn refusal(shared: &Shared, to: IpAddr) -> Option<Refusal> {
    let to = SocketAddr::new(to, NO_PORT);
    let is_named = || shared.name_told(Protocol::Icmp, to).is_some();
    shared.refusal_of_datagram(shared.of_address(Protocol::Icmp, to), is_named)
}

/// Carries what is heard to the guest, until that was nothing for a while. `first` is the request that began it.
async fn answers(shared: Arc<Shared>, socket: Arc<EchoSocket>, first: Echo) {
    while let Ok(heard) = timeout(IDLE_MAX, socket.hear()).await {
        let packet = match heard {
            Ok(Heard::Reply { sequence, payload }) => {
                if !shared.carries(Way::In, payload.len()) {
                    continue;
                }
                Echo { sequence, payload, ..first.clone() }.reply()
            }
            Ok(Heard::Unreachable { sequence, why }) => Echo { sequence, ..first.clone() }.unreachable(why),
            Err(error) => {
                tracing::debug!(%error, to = %first.to, "a guest's echo requests are answered no more");
                return;
            }
        };
        shared.sender.to_guest(&packet);
    }
}

/// An entry of a policy that has ports has none that is this.
const NO_PORT: u16 = 0;
/// RFC 5508 asks for a minute and more.
const IDLE_MAX: Duration = Duration::from_secs(60);
