use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::sleep,
};

/// Carries the connections of one published port to who listens on the loopback.
pub(super) struct Forward {
    pub(super) target: SocketAddr,
    pub(super) permits: Arc<Semaphore>,
    pub(super) restores: watch::Receiver<u64>,
}

impl Forward {
    /// Accepts for ever; when there are too many connections, one at a time waits here and the rest in the kernel.
    pub(super) async fn serve(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let carrying = carry(stream, self.target, self.restores.clone());
                    let Ok(permit) = self.permits.clone().acquire_owned().await else { return };
                    tokio::spawn(async move {
                        carrying.await;
                        drop(permit);
                    });
                }
                // Out of descriptors, most likely: some will be closed.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Carries both directions until both have ended, each by itself: a client that has said all still gets its answer.
async fn carry(mut outside: TcpStream, target: SocketAddr, mut restores: watch::Receiver<u64>) {
    restores.mark_unchanged();
    // Nobody there, as on any closed port.
    let Ok(mut inside) = TcpStream::connect(target).await else { return };
    for stream in [&outside, &inside] {
        // It is for the two ends to gather what they send.
        let _ = stream.set_nodelay(true);
    }
    tokio::select! {
        // A connection that breaks is its two ends' to notice.
        _ = copy_bidirectional(&mut outside, &mut inside) => {}
        _ = restores.changed() => {}
    }
}
