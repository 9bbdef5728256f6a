//! What a guest's connection is joined with: one to a server, or one to a proxy that carries on what comes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection that was made in a guest's place.
#[derive(Debug)]
pub(super) enum Dialled {
    /// To the server, or to a proxy that carries on each byte as it is.
    Tcp(TcpStream),
    /// To a proxy, within TLS.
    Tls(Box<Tunnel>),
}

/// TLS to a proxy, in which a connection is carried.
#[derive(Debug)]
pub(super) struct Tunnel {
    stream: TlsStream<TcpStream>,
    /// What the server has said already.
    early: BytesMut,
}

impl Dialled {
    pub(super) fn over_tls(stream: TlsStream<TcpStream>) -> Self {
        Self::Tls(Box::new(Tunnel { stream, early: BytesMut::new() }))
    }

    /// The connection that carries it.
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Tls(tunnel) => tunnel.stream.get_ref().0,
        }
    }

    /// Waits until the server has said something, or has ended. Nothing of it is lost, also where this is cancelled.
    pub(super) async fn begins(&mut self) -> io::Result<()> {
        match self {
            // A socket may be said to be readable before anything has come.
            Self::Tcp(stream) => stream.peek(&mut [0]).await.map(drop),
            // What comes by TCP may be of TLS alone, such as its tickets.
            Self::Tls(tunnel) if tunnel.early.is_empty() => {
                tunnel.early.reserve(EARLY_BYTES);
                tunnel.stream.read_buf(&mut tunnel.early).await.map(drop)
            }
            Self::Tls(_) => Ok(()),
        }
    }
}

impl AsFd for Dialled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp().as_fd()
    }
}

impl AsyncRead for Dialled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(tunnel) if tunnel.early.is_empty() => Pin::new(&mut tunnel.stream).poll_read(cx, buf),
            Self::Tls(tunnel) => {
                let len = tunnel.early.len().min(buf.remaining());
                buf.put_slice(&tunnel.early[..len]);
                tunnel.early.advance(len);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(tunnel) => Pin::new(&mut tunnel.stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(tunnel) => Pin::new(&mut tunnel.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(tunnel) => Pin::new(&mut tunnel.stream).poll_shutdown(cx),
        }
    }
}

const EARLY_BYTES: usize = 4096;
