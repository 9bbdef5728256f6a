//! One connection of a guest's that is intercepted, from its first byte on.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;

use crate::egress::dialled::Dialled;
use crate::egress::intercept::http::{begin_http1, begin_http2, serve_http1, serve_http2};
use crate::egress::intercept::interception::Interception;
use crate::egress::intercept::line::Line;
use crate::egress::intercept::session::{Session, Upstream};
use crate::egress::intercept::target::{Scheme, Target};
use crate::egress::intercept::tasks::Tasks;
use crate::egress::servers::HANDSHAKE_MAX;
use crate::egress::shared::Shared;

/// Carries a guest's connection, of which `head` was read, until either end has ended, or nothing has come or gone for a
/// while.
pub(in crate::egress) async fn carry(
    shared: Arc<Shared>,
    interception: &Interception,
    target: Target,
    (guest, head): (TcpStream, Vec<u8>),
    upstream: Dialled,
) -> io::Result<()> {
    let moved = Arc::new(AtomicU64::new(0));
    let guest = Line::of_guest(guest, head, Arc::clone(&shared), Arc::clone(&moved));
    let carried = async {
        match target.scheme {
            Scheme::Https => over_tls(shared, interception, target, guest, upstream).await,
            Scheme::Http => {
                let (upstream, end) = begin_http1(Line::of_server(upstream)).await.map_err(io::Error::other)?;
                let secrets = Arc::clone(&interception.secrets);
                serve_http1(Session::new(shared, secrets, target, upstream), guest, end).await
            }
        }
    };
    tokio::select! {
        carried = carried => carried,
        () = silence(&moved) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn over_tls(
    shared: Arc<Shared>,
    interception: &Interception,
    target: Target,
    guest: Line<TcpStream>,
    upstream: Dialled,
) -> io::Result<()> {
    let hello = timeout(HANDSHAKE_MAX, LazyConfigAcceptor::new(Acceptor::default(), guest)).await??;
    let offered: Vec<&[u8]> = hello.client_hello().alpn().map(Iterator::collect).unwrap_or_default();
    let mut protocols: Vec<Vec<u8>> =
        [HTTP2, HTTP1].iter().filter(|it| offered.contains(it)).map(|it| it.to_vec()).collect();
    if protocols.is_empty() {
        protocols.push(HTTP1.to_vec());
    }
    let leaf = interception.interceptor.authority().map_err(io::Error::other)?.leaf(&target.name)?;
    let upstream = Line::of_server(upstream);
    let upstream = interception.interceptor.servers().connect(&target.name, upstream, protocols).await;
    // A guest is told of it in an answer, and so has to be spoken to.
    let agreed: &[&[u8]] = match &upstream {
        Ok(upstream) if upstream.get_ref().1.alpn_protocol() == Some(HTTP2) => &[HTTP2],
        Ok(_) => &[HTTP1],
        Err(_) => &[HTTP2, HTTP1],
    };
    let mut config = ServerConfig::clone(&leaf);
    config.alpn_protocols = agreed.iter().map(|it| it.to_vec()).collect();
    let guest = timeout(HANDSHAKE_MAX, hello.into_stream(Arc::new(config))).await??;
    let is_http2 = guest.get_ref().1.alpn_protocol() == Some(HTTP2);
    let tasks = Tasks::default();
    let _end = tasks.ended_with_this();
    let name = target.name.clone();
    let session = |upstream| Session::new(shared, Arc::clone(&interception.secrets), target, upstream);
    match upstream {
        Ok(upstream) if is_http2 => {
            let (upstream, end) = begin_http2(upstream, tasks.clone()).await.map_err(io::Error::other)?;
            serve_http2(session(upstream), guest, end, tasks).await
        }
        Ok(upstream) => {
            let (upstream, end) = begin_http1(upstream).await.map_err(io::Error::other)?;
            serve_http1(session(upstream), guest, end).await
        }
        Err(error) => {
            tracing::debug!(%error, name, "a server was not connected to in a guest's place");
            let nowhere = Upstream::Nowhere(format!("{name} could not be connected to: {error}"));
            match is_http2 {
                true => serve_http2(session(nowhere), guest, pending(), tasks).await,
                false => serve_http1(session(nowhere), guest, pending()).await,
            }
        }
    }
}

/// Ends once nothing was carried for a while.
async fn silence(moved: &AtomicU64) {
    loop {
        let before = moved.load(Relaxed);
        sleep(IDLE_MAX).await;
        if moved.load(Relaxed) == before {
            return;
        }
    }
}

/// As they are named in ALPN.
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";
/// Longer than any server thinks before it answers.
const IDLE_MAX: Duration = Duration::from_secs(1800);
