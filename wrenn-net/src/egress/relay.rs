//! Two connections that are one.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

use crate::egress::counters::Way;
use crate::egress::dialled::Dialled;
use crate::egress::shared::Shared;

/// Carries data both ways until both have ended. Each end is passed on by itself. On an error both are reset.
pub(super) async fn relay(mut guest: TcpStream, mut upstream: Dialled, shared: &Shared) -> io::Result<()> {
    let (from_guest, to_guest) = guest.split();
    match &mut upstream {
        Dialled::Tcp(upstream) => {
            let (from_upstream, to_upstream) = upstream.split();
            let out = pump(from_guest, to_upstream, shared, Way::Out);
            tokio::try_join!(out, pump(from_upstream, to_guest, shared, Way::In))?;
        }
        within_tls @ Dialled::Tls(_) => {
            let (from_upstream, to_upstream) = tokio::io::split(within_tls);
            let out = pump(from_guest, to_upstream, shared, Way::Out);
            tokio::try_join!(out, pump_records(from_upstream, to_guest, shared, Way::In))?;
        }
    }
    for ended in [&guest, upstream.tcp()] {
        // What is on its way still arrives.
        socket2::SockRef::from(ended).set_linger(None)?;
    }
    Ok(())
}

async fn pump(from: ReadHalf<'_>, mut to: impl AsyncWrite + Unpin, shared: &Shared, way: Way) -> io::Result<()> {
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
                    to.flush().await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }
}

/// As [`pump`], of what comes within TLS, which tells nobody that there is something before it is read.
async fn pump_records(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    way: Way,
) -> io::Result<()> {
    let mut buffer = vec![0; RECORD_BYTES.min(shared.piece(way))];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            len => {
                shared.carry(way, len).await;
                to.write_all(&buffer[..len]).await?;
            }
        }
    }
}

const BUFFER_BYTES: usize = 64 << 10;
/// What one record of TLS has at most (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 16 << 10;
