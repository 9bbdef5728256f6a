//! The certificate that the server shows, and where a newer one comes from.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use crate::tls::authority::Authority;

/// Where the server's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Two files in PEM. They are read again when they change.
    Files {
        /// The certificate, and what it is signed by, in this order.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// An authority of the server's own, which clients have to be told to trust.
    Own,
}

/// The certificate that is shown now.
#[derive(Debug)]
pub struct Certificate {
    source: Source,
    shown: RwLock<Shown>,
}

#[derive(Debug)]
enum Source {
    Files { certificate: PathBuf, key: PathBuf },
    Own { authority: Box<Authority>, names: Vec<String> },
}

#[derive(Debug, Clone)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// What it was made of: it is made anew when that is another one.
    stamp: Vec<u8>,
}

impl Certificate {
    /// The certificate of a server at this address, the ports of whose sandboxes have names below `domain`. What the server
    /// makes for it is kept in `directory`.
    pub(crate) fn open(tls: &Tls, directory: &Path, domain: &str, address: IpAddr) -> anyhow::Result<Self> {
        let source = match tls.clone() {
            Tls::Files { certificate, key } => Source::Files { certificate, key },
            Tls::Own => Source::Own { authority: Box::new(Authority::open(directory)?), names: names(domain, address) },
        };
        let shown = source.newer(&[], SystemTime::now())?.context("a certificate was made of nothing")?;
        Ok(Self { source, shown: RwLock::new(shown) })
    }

    /// The certificate of the authority that clients have to be told to trust, if it is the server's own.
    pub(crate) fn authority(&self) -> Option<&Path> {
        match &self.source {
            Source::Files { .. } => None,
            Source::Own { authority, .. } => Some(authority.path()),
        }
    }

    /// Looks for a newer one each minute, for good.
    ///
    /// # Cancel-Safety
    /// It can be dropped at any time.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOKED_AT_EVERY).await;
            let this = Arc::clone(&self);
            tokio::task::spawn_blocking(move || this.look(SystemTime::now())).await.ok();
        }
    }

    /// Shows a newer one from now on, if there is one that is good.
    fn look(&self, now: SystemTime) {
        let stamp = self.shown().stamp;
        match self.source.newer(&stamp, now) {
            Ok(None) => {}
            Ok(Some(newer)) => {
                tracing::info!("another certificate is shown from now on");
                *self.shown.write().unwrap_or_else(PoisonError::into_inner) = newer;
            }
            // Such as when one of two files was written yet.
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!(why, "the new certificate cannot be used: the one before is shown");
            }
        }
    }

    fn shown(&self) -> Shown {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown().key)
    }
}

impl Source {
    /// What is to be shown, where that is not what was made of `stamp`.
    fn newer(&self, stamp: &[u8], now: SystemTime) -> anyhow::Result<Option<Shown>> {
        match self {
            Self::Files { certificate, key } => {
                let (chain_pem, key_pem) = (read(certificate)?, read(key)?);
                let digest = [Sha256::digest(&chain_pem), Sha256::digest(&key_pem)].concat();
                if digest == stamp {
                    return Ok(None);
                }
                let chain = CertificateDer::pem_slice_iter(&chain_pem).collect::<Result<Vec<_>, _>>();
                let chain = chain.with_context(|| format!("{} is no PEM", certificate.display()))?;
                anyhow::ensure!(!chain.is_empty(), "{} has no certificate in PEM", certificate.display());
                let key_der = PrivateKeyDer::from_pem_slice(&key_pem);
                let key_der = key_der.with_context(|| format!("{} has no private key in PEM", key.display()))?;
                let pair = CertifiedKey::from_der(chain, key_der, &ring::default_provider()).with_context(|| {
                    format!("{} is no certificate of the key {}", certificate.display(), key.display())
                })?;
                Ok(Some(Shown { key: Arc::new(pair), stamp: digest }))
            }
            Self::Own { authority, names } => {
                let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let period = (since.as_secs() / RENEWED_EVERY.as_secs()).to_le_bytes();
                if period == stamp {
                    return Ok(None);
                }
                let key = Arc::new(authority.sign(names, now)?);
                Ok(Some(Shown { key, stamp: period.to_vec() }))
            }
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path)
        .with_context(|| format!("{} cannot be read: name another one, or make it readable", path.display()))
}

/// What a server is called.
fn names(domain: &str, address: IpAddr) -> Vec<String> {
    let mut names = vec![domain.to_owned(), format!("*.{domain}")];
    names.extend(["localhost", "*.localhost", "127.0.0.1", "::1"].map(str::to_owned));
    if !address.is_unspecified() {
        names.push(address.to_string());
    }
    names.sort();
    names.dedup();
    names
}

/// Two reads of small files.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(60);
/// A third of how long a certificate of the server's own is good for.
const RENEWED_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, key: &rcgen::KeyPair) {
        let params = rcgen::CertificateParams::new(vec!["wrenn.test".to_owned()]).expect("a name");
        let certificate = params.self_signed(key).expect("a certificate");
        std::fs::write(dir.join("certificate.pem"), certificate.pem()).expect("written");
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).expect("written");
    }

    fn files(dir: &Path) -> anyhow::Result<Certificate> {
        let tls = Tls::Files { certificate: dir.join("certificate.pem"), key: dir.join("key.pem") };
        Certificate::open(&tls, dir, "wrenn.test", [127, 0, 0, 1].into())
    }

    #[test]
    fn files_are_read_again_when_they_change_and_what_is_no_pair_is_not_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = || rcgen::KeyPair::generate().expect("a key");
        let refused = files(dir.path()).expect_err("nothing is there");
        assert!(format!("{refused:#}").contains("certificate.pem cannot be read"), "{refused:#}");
        write(dir.path(), &key());
        let certificate = files(dir.path()).expect("a certificate");
        let shown = |certificate: &Certificate| certificate.shown().key.cert.first().expect("one").to_vec();
        let first = shown(&certificate);
        certificate.look(SystemTime::now());
        assert_eq!(shown(&certificate), first, "nothing has changed");
        // One file of the two.
        std::fs::write(dir.path().join("key.pem"), key().serialize_pem()).expect("written");
        certificate.look(SystemTime::now());
        assert_eq!(shown(&certificate), first, "they are no pair");
        write(dir.path(), &key());
        certificate.look(SystemTime::now());
        assert_ne!(shown(&certificate), first);
        std::fs::write(dir.path().join("key.pem"), "no key").expect("written");
        let refused = files(dir.path()).expect_err("it has no key");
        assert!(format!("{refused:#}").contains("key.pem has no private key in PEM"), "{refused:#}");
    }

    #[test]
    fn an_own_certificate_is_renewed_long_before_it_ends_and_its_authority_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = dir.path().join("tls");
        let open = || Certificate::open(&Tls::Own, &place, "wrenn.test", [10, 0, 0, 1].into()).expect("a certificate");
        let certificate = open();
        let authority = std::fs::read(certificate.authority().expect("its own")).expect("a file");
        let first = certificate.shown();
        certificate.look(SystemTime::now() + RENEWED_EVERY);
        assert_ne!(certificate.shown().stamp, first.stamp);
        assert_ne!(certificate.shown().key.cert, first.key.cert);
        assert_eq!(
            std::fs::read(open().authority().expect("its own")).expect("a file"),
            authority,
            "the next one's, too"
        );
        for file in std::fs::read_dir(&place).expect("a directory") {
            let mode = file.and_then(|file| file.metadata()).expect("a file").permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o7777, 0o600);
        }
    }
}
