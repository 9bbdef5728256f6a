//! Two connections that are one.

use std::io;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::egress::counters::Way;
use crate::egress::shared::Shared;

/// Carries data both ways until both have ended. Each end is passed on by itself. On an error both are reset.
pub(super) async fn relay(mut guest: TcpStream, mut upstream: TcpStream, shared: &Shared) -> io::Result<()> {
    let (from_guest, to_guest) = guest.split();
    let (from_upstream, to_upstream) = upstream.split();
    tokio::try_join!(pump(from_guest, to_upstream, shared, Way::Out), pump(from_upstream, to_guest, shared, Way::In),)?;
    for ended in [&guest, &upstream] {
        // What is on its way still arrives.
        socket2::SockRef::from(ended).set_linger(None)?;
    }
    Ok(())
}

async fn pump(from: ReadHalf<'_>, mut to: WriteHalf<'_>, shared: &Shared, way: Way) -> io::Result<()> {
    let piece = BUFFER_BYTES.min(shared.piece(way));
    loop {
        // The buffer is there for as long as data flows: most connections are idle most of the time.
        from.ready(Interest::READABLE).await?;
        let mut buffer = vec![0; piece];
        loop {
            match from.try_read(&mut buffer) {
                Ok(0) => return to.shutdown().await,
                Ok(len) => {
                    shared.carry(way, len).await;
                    to.write_all(&buffer[..len]).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

const BUFFER_BYTES: usize = 64 << 10;
