//! What there is for each version of IP.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;

use crate::gate::Inlets;
use crate::sys;

/// Something for IPv4, and the same for IPv6 where the guest has that.
#[derive(Debug)]
pub(super) struct Both<T> {
    pub(super) v4: T,
    pub(super) v6: Option<T>,
}

/// Waits for either of two.
///
/// # Cancel-Safety
/// That of what is waited for: the slower one is cancelled.
pub(super) async fn either<R>(one: impl Future<Output = R>, other: Option<impl Future<Output = R>>) -> R {
    let Some(other) = other else { return one.await };
    tokio::select! {
        done = one => done,
        done = other => done,
    }
}

/// The sockets of one version of IP, which the runtime watches.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) listener: TcpListener,
    pub(super) datagrams: AsyncFd<OwnedFd>,
}

impl Watched {
    pub(super) fn new(inlets: Inlets) -> io::Result<Self> {
        let Inlets { listener, datagrams } = inlets;
        Ok(Self { listener: TcpListener::from_std(listener)?, datagrams: sys::watch(datagrams)? })
    }
}
