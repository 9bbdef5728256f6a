//! HTTP with a guest, joined with that of a server.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn as client;
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::time::timeout;

use crate::egress::intercept::session::{Session, Upgraded, Upstream};
use crate::egress::intercept::tasks::Tasks;

/// A connection under HTTP.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// Begins HTTP/1.1 with a server. The future has to run for as long as requests are sent, and ends with the connection.
pub(super) async fn begin_http1(stream: impl Stream) -> hyper::Result<(Upstream, impl Future<Output = ()>)> {
    let mut builder = client::http1::Builder::new();
    builder.preserve_header_case(true).max_buf_size(BUFFER_BYTES);
    let (sender, connection) = builder.handshake::<_, Incoming>(TokioIo::new(stream)).await?;
    Ok((Upstream::Http1(sender.into()), told(connection.with_upgrades())))
}

/// As [`begin_http1`], of HTTP/2.
pub(super) async fn begin_http2(
    stream: impl Stream,
    tasks: Tasks,
) -> hyper::Result<(Upstream, impl Future<Output = ()>)> {
    let mut builder = client::http2::Builder::new(tasks);
    builder.initial_stream_window_size(STREAM_BYTES).initial_connection_window_size(CONNECTION_BYTES);
    builder.max_send_buf_size(BUFFER_BYTES).max_header_list_size(HEAD_BYTES);
    let (sender, connection) = builder.handshake::<_, Incoming>(TokioIo::new(stream)).await?;
    Ok((Upstream::Http2(sender), told(connection)))
}

/// Serves a guest by HTTP/1.1 until either connection ends. `upstream` is the server's.
pub(super) async fn serve_http1(
    session: Arc<Session>,
    guest: impl Stream,
    upstream: impl Future<Output = ()>,
) -> io::Result<()> {
    let of_service = Arc::clone(&session);
    let service = service_fn(move |request| {
        let session = Arc::clone(&of_service);
        async move { session.answer(request).await }
    });
    let mut builder = server::http1::Builder::new();
    builder.preserve_header_case(true).auto_date_header(false).max_buf_size(BUFFER_BYTES);
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    let mut serve = Box::pin(builder.serve_connection(TokioIo::new(guest), service).with_upgrades());
    let mut upstream = pin!(upstream);
    let is_over = serve_until_end(serve.as_mut(), upstream.as_mut(), |serve| {
        if !session.is_upgrading() {
            serve.graceful_shutdown();
        }
    })
    .await?;
    let upgraded = session.take_upgraded();
    // With the last of whoever could send a request, the server's connection ends in order.
    drop((serve, session));
    let end = async {
        if !is_over {
            upstream.await;
        }
    };
    match upgraded {
        Some(upgraded) => tokio::join!(end, join(upgraded)).1,
        None => {
            timeout(END_MAX, end).await.ok();
            Ok(())
        }
    }
}

/// Serves a guest by HTTP/2 until either connection ends. `upstream` is the server's.
pub(super) async fn serve_http2(
    session: Arc<Session>,
    guest: impl Stream,
    upstream: impl Future<Output = ()>,
    tasks: Tasks,
) -> io::Result<()> {
    let service = service_fn(move |request| {
        let session = Arc::clone(&session);
        async move { session.answer(request).await }
    });
    let mut builder = server::http2::Builder::new(tasks);
    builder.auto_date_header(false).max_concurrent_streams(STREAMS_MAX).max_send_buf_size(BUFFER_BYTES);
    builder.initial_stream_window_size(STREAM_BYTES).initial_connection_window_size(CONNECTION_BYTES);
    builder.max_header_list_size(HEAD_BYTES);
    let mut serve = Box::pin(builder.serve_connection(TokioIo::new(guest), service));
    let mut upstream = pin!(upstream);
    let is_over = serve_until_end(serve.as_mut(), upstream.as_mut(), |serve| serve.graceful_shutdown()).await?;
    drop(serve);
    if !is_over {
        timeout(END_MAX, upstream).await.ok();
    }
    Ok(())
}

/// Serves a guest until its connection ends, which `shut_down` begins once the server's has: what was answered still goes to
/// the guest. Returns whether the server's has ended.
async fn serve_until_end<C: Future<Output = hyper::Result<()>>>(
    mut serve: Pin<&mut C>,
    mut upstream: Pin<&mut impl Future<Output = ()>>,
    shut_down: impl Fn(Pin<&mut C>),
) -> io::Result<bool> {
    let mut is_over = false;
    loop {
        tokio::select! {
            served = &mut serve => return served.map(|()| is_over).map_err(io::Error::other),
            () = &mut upstream, if !is_over => {
                is_over = true;
                shut_down(serve.as_mut());
            }
        }
    }
}

/// Carries what follows HTTP on both connections.
async fn join(Upgraded { guest, upstream }: Upgraded) -> io::Result<()> {
    let (guest, upstream) = tokio::try_join!(guest, upstream).map_err(io::Error::other)?;
    copy_bidirectional(&mut TokioIo::new(guest), &mut TokioIo::new(upstream)).await.map(drop)
}

/// The end of a server's connection, of which those who wait for answers are told.
async fn told(connection: impl Future<Output = hyper::Result<()>>) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an intercepted connection ended at its server");
    }
}

/// Of either side of a connection; a head of HTTP/1.1 has to fit as well.
const BUFFER_BYTES: usize = 64 << 10;
const HEAD_BYTES: u32 = 64 << 10;
/// Data that waits for a reader, of one stream and of all.
const STREAM_BYTES: u32 = 256 << 10;
const CONNECTION_BYTES: u32 = 1 << 20;
const STREAMS_MAX: u32 = 128;
/// Between two requests a guest may be silent for as long as servers commonly let it.
const HEAD_MAX: Duration = Duration::from_secs(300);
/// For the last bytes to a server.
const END_MAX: Duration = Duration::from_secs(5);
