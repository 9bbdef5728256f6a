//! The servers that are connected to in a guest's place, and whom they have to be certified by.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::error::NetError;

/// Whom servers have to be certified by: the authorities of this host, and others.
#[derive(Debug, Default)]
pub(super) struct Servers {
    /// Whether the host's are not trusted.
    is_alone: bool,
    others: Vec<CertificateDer<'static>>,
    config: OnceCell<Arc<ClientConfig>>,
}

impl Servers {
    /// Those that these authorities certify, in PEM, and no others.
    pub(super) fn certified_by(pem: &str) -> Result<Self, NetError> {
        let mut servers = Self { is_alone: true, ..Self::default() };
        servers.trust(pem).map(|()| servers)
    }

    /// Adds authorities, in PEM.
    pub(super) fn trust(&mut self, pem: &str) -> Result<(), NetError> {
        let wrong = |error| NetError::at("read certificates to trust")(io::Error::other(error));
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            self.others.push(certificate.map_err(|error| wrong(error.to_string()))?);
        }
        match self.others.is_empty() {
            true => Err(wrong("there is none in PEM".to_owned())),
            false => Ok(()),
        }
    }

    /// Makes a TLS connection to the server of a name, which speaks one of these protocols, or any where there is none.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        name: &str,
        stream: S,
        protocols: Vec<Vec<u8>>,
    ) -> io::Result<TlsStream<S>> {
        let config = self.config.get_or_try_init(|| self.read()).await?;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(config));
        timeout(HANDSHAKE_MAX, connector.with_alpn(protocols).connect(name, stream)).await?
    }

    /// Reads the host's authorities: some hundred files, on some hosts.
    async fn read(&self) -> io::Result<Arc<ClientConfig>> {
        let (is_alone, others) = (self.is_alone, self.others.clone());
        let config = spawn_blocking(move || config(is_alone, &others)).await?;
        config.map(Arc::new).map_err(io::Error::other)
    }
}

fn config(is_alone: bool, others: &[CertificateDer<'static>]) -> Result<ClientConfig, rustls::Error> {
    let mut roots = if is_alone { RootCertStore::empty() } else { of_host() };
    others.iter().try_for_each(|certificate| roots.add(certificate.clone()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Reads the host's authorities.
fn of_host() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    if let Some(error) = native.errors.first() {
        tracing::warn!(%error, "not all of the host's certificate authorities could be read");
    }
    // One of many that cannot be read is one that nobody needs.
    roots.add_parsable_certificates(native.certs);
    roots
}

/// For guests whose processor is emulated, too.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(60);
