//! Publishes what listens on the guest's loopback on the guest's own address, where the host can reach it.
//!
//! ```text
//!  every second: changes -> /proc/net/tcp{,6} -> listeners::parse -> plan::Plan --+-> Publication::open -> forward::serve
//!                                                                                 +-> drop (closes the port)
//! ```
//!
//! Most development servers listen on 127.0.0.1 or ::1 alone. What listens on all addresses is reachable as it is. A
//! published port is taken on the guest's address: a program that closes its loopback listener and wants the same port on
//! all addresses gets it once the next look has seen the close.

mod changes;
mod forward;
mod listeners;
mod plan;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use changes::Changes;
use forward::Forward;
use listeners::Family;
use plan::Plan;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::sleep,
};

/// A port that is published. Dropping it closes the port; connections that are open go on.
struct Publication {
    target: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Publishes on `address` for ever. Connections from before a change of `restores` lead nowhere, and are closed.
pub(super) async fn publish(address: IpAddr, restores: watch::Receiver<u64>) {
    let mut published = BTreeMap::<u16, Publication>::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut changes = Changes::new();
    loop {
        if !changes.may_be() {
            sleep(INTERVAL).await;
            continue;
        }
        let ours = published.iter().map(|(port, publication)| (*port, publication.target)).collect();
        let Plan { open, close } = plan::plan(address, &listeners(), &ours);
        for port in close {
            published.remove(&port);
        }
        for (port, target) in open {
            // Somebody may have been quicker; the next look tells.
            let Ok(listener) = TcpListener::bind((address, port)).await else { continue };
            let forward = Forward { target, permits: permits.clone(), restores: restores.clone() };
            let task = tokio::spawn(forward.serve(listener));
            published.insert(port, Publication { target, task });
        }
        sleep(INTERVAL).await;
    }
}

/// Everybody who listens. A kernel without IPv6 has one file less.
fn listeners() -> Vec<SocketAddr> {
    let read = |path, family| listeners::parse(&fs::read_to_string(path).unwrap_or_default(), family);
    let mut all = read("/proc/net/tcp", Family::V4);
    all.extend(read("/proc/net/tcp6", Family::V6));
    all
}

/// E2B's.
const INTERVAL: Duration = Duration::from_secs(1);

/// Of all published ports together; each takes two descriptors and 16 KiB. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;
