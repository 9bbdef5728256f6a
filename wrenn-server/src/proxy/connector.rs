//! Connections to the ports of sandboxes, as the client of HTTP wants them.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tower::Service;
use wrenn_core::PortStream;

use crate::proxy::trust::trusting;
use crate::service::sandboxes::Sandboxes;
use crate::service::sandboxes::reach::Reached;

/// Connects to `http://PORT.ID` and `https://PORT.ID`, which no name server knows.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    sandboxes: Arc<Sandboxes>,
}

/// A connection to a port.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(PortStream),
    Tls(Box<tokio_rustls::client::TlsStream<PortStream>>),
}

/// The address of a port, for [`Connector`].
pub(super) fn authority(reached: &Reached, port: u16) -> (&'static str, String) {
    let has_tls = reached.record.asked.network.inbound.tls_ports.contains(&port);
    (if has_tls { "https" } else { "http" }, format!("{port}.{}", reached.record.id))
}

impl Connector {
    pub(super) fn new(sandboxes: Arc<Sandboxes>) -> Self {
        Self { sandboxes }
    }

    async fn connect(self, uri: Uri) -> io::Result<Stream> {
        let (port, id) = uri.host().and_then(|host| host.split_once('.')).unwrap_or_default();
        let (Ok(port), Ok(id)) = (port.parse(), id.parse()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no port of a sandbox"));
        };
        let reached = self.sandboxes.reached(&id).ok_or(io::ErrorKind::NotConnected)?;
        let stream = reached.sandbox.connect(port).await.map_err(io::Error::other)?;
        if uri.scheme_str() != Some("https") {
            return Ok(Stream::Plain(stream));
        }
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let stream = TlsConnector::from(trusting()?).connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect(uri).await.map(TokioIo::new) })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
