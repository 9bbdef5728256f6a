//! How a connection begins: by a TLS handshake, or by HTTP at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::tls::certificate::Certificate;

/// A connection, with TLS or without.
pub(crate) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// Begins connections.
#[derive(Clone)]
pub(crate) struct Acceptor(Option<TlsAcceptor>);

impl Acceptor {
    /// One that shows this certificate; without one, connections have no TLS.
    pub(crate) fn new(certificate: Option<Arc<Certificate>>) -> anyhow::Result<Self> {
        let Some(certificate) = certificate else { return Ok(Self(None)) };
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions()?.with_no_client_auth();
        let mut config = config.with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Some(TlsAcceptor::from(Arc::new(config)))))
    }

    /// Begins a connection.
    ///
    /// # Errors
    /// The handshake fails, or takes longer than ten seconds.
    pub(crate) async fn begin(&self, stream: TcpStream) -> io::Result<Stream> {
        match &self.0 {
            None => Ok(Either::Left(stream)),
            Some(tls) => Ok(Either::Right(timeout(HANDSHAKE_MAX, tls.accept(stream)).await??)),
        }
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Acceptor").field(&self.0.is_some()).finish()
    }
}

/// A connection has its slot meanwhile.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
