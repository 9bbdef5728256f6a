//! The authority whose certificates guests are shown in place of the servers' own.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::error::NetError;

/// An authority that guests trust, and its certificates for the names of servers.
///
/// Whoever has its key can pretend to be any server to the guests that trust it, and to nobody else.
///
/// ```
/// use wrenn_net::Authority;
///
/// # fn main() -> Result<(), wrenn_net::NetError> {
/// let authority = Authority::generate()?;
/// let again = Authority::from_pem(&authority.to_pem())?;
/// assert_eq!(again.certificate(), authority.certificate());
/// # Ok(()) }
/// ```
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    /// All leaves have the same, since nobody but this program has it.
    leaf_key: KeyPair,
    leaves: Mutex<HashMap<String, Leaf>>,
}

struct Leaf {
    config: Arc<ServerConfig>,
    made: SystemTime,
}

impl Authority {
    /// A new one. It is good for twenty years.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn generate() -> Result<Self, NetError> {
        let key = KeyPair::generate().map_err(failed(WHAT))?;
        let certificate = params_of(&key).self_signed(&key).map_err(failed(WHAT))?;
        Self::of(key, certificate.pem())
    }

    /// The one that [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// It is not one, or its certificate is not of its key.
    pub fn from_pem(pem: &str) -> Result<Self, NetError> {
        const WHAT: &str = "read the certificate authority";
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).map_err(failed(WHAT))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(failed(WHAT))?;
        let pair = KeyPair::try_from(&key).map_err(failed(WHAT))?;
        let provider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(vec![der], PrivateKeyDer::Pkcs8(key), &provider).map_err(failed(WHAT))?;
        let certificate = pem.find(CERTIFICATE).and_then(|at| pem.get(at..)).unwrap_or_default();
        Self::of(pair, certificate.to_owned())
    }

    /// Its key and its certificate, in PEM. The key is a secret.
    #[must_use]
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.issuer.key().serialize_pem(), self.certificate)
    }

    /// Its certificate, in PEM, for guests to trust.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What speaks TLS to guests as the server of that name.
    pub(super) fn leaf(&self, name: &str) -> io::Result<Arc<ServerConfig>> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        let is_fresh = |leaf: &Leaf| now.duration_since(leaf.made).is_ok_and(|age| age < LEAF_USED_FOR);
        if let Some(leaf) = leaves.get(name).filter(|leaf| is_fresh(leaf)) {
            return Ok(Arc::clone(&leaf.config));
        }
        let config = Arc::new(self.make_leaf(name, now).map_err(io::Error::other)?);
        if leaves.len() >= LEAVES_MAX {
            let oldest = leaves.iter().min_by_key(|(_, leaf)| leaf.made).map(|(name, _)| name.clone());
            oldest.and_then(|name| leaves.remove(&name));
        }
        leaves.insert(name.to_owned(), Leaf { config: Arc::clone(&config), made: now });
        Ok(config)
    }

    fn make_leaf(&self, name: &str, now: SystemTime) -> Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into()?)];
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // Clients refuse a number that they have seen of the same authority.
        params.serial_number = Some(SerialNumber::from(positive(rand::random())));
        // A guest's clock may be a little behind.
        params.not_before = (now - DAY).into();
        params.not_after = (now + LEAF_VALID_FOR).into();
        let certificate = params.signed_by(&self.leaf_key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(self.leaf_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        Ok(config.with_no_client_auth().with_single_cert(vec![certificate.into()], key)?)
    }

    fn of(key: KeyPair, certificate: String) -> Result<Self, NetError> {
        let leaf_key = KeyPair::generate().map_err(failed(WHAT))?;
        Ok(Self { certificate, issuer: Issuer::new(params_of(&key), key), leaf_key, leaves: Mutex::default() })
    }
}

/// What an authority's certificate says: it follows from its key, so that a leaf names the authority as that does.
fn params_of(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let tail = key.public_key_raw().iter().rev().take(6).map(|byte| format!("{byte:02x}"));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("wrenn's own authority {}", tail.collect::<String>()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + AUTHORITY_VALID_FOR).into();
    params
}

/// A serial number is positive, and its first byte no zero (RFC 5280, section 4.1.2.2).
fn positive(mut random: [u8; 16]) -> Vec<u8> {
    if let Some(first) = random.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    random.to_vec()
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> NetError {
    move |error| NetError::at(what)(io::Error::other(error))
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

const WHAT: &str = "make a certificate authority";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";
const DAY: Duration = Duration::from_secs(86_400);
const AUTHORITY_VALID_FOR: Duration = Duration::from_secs(20 * 365 * 86_400);
/// Some clients take no longer ones.
const LEAF_VALID_FOR: Duration = Duration::from_secs(90 * 86_400);
/// A leaf is made anew long before it ends, for connections that stay.
const LEAF_USED_FOR: Duration = Duration::from_secs(7 * 86_400);
/// Some KiB each, with the sessions of TLS that can be resumed.
const LEAVES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_made_once_and_their_number_is_bounded() {
        let authority = Authority::generate().expect("an authority");
        let first = authority.leaf("a.example").expect("a leaf");
        assert!(Arc::ptr_eq(&first, &authority.leaf("a.example").expect("a leaf")));
        for number in 0..LEAVES_MAX {
            authority.leaf(&format!("{number}.example")).expect("a leaf");
        }
        assert_eq!(authority.leaves.lock().expect("unpoisoned").len(), LEAVES_MAX);
        assert!(!Arc::ptr_eq(&first, &authority.leaf("a.example").expect("a leaf")));
    }

    #[test]
    fn what_is_damaged_is_refused_and_the_key_is_not_shown() {
        let (one, other) = (Authority::generate().expect("one"), Authority::generate().expect("another"));
        let key = |authority: &Authority| authority.issuer.key().serialize_pem();
        for bad in ["", "text", one.certificate(), &key(&one), &(key(&one) + other.certificate())] {
            assert!(Authority::from_pem(bad).is_err(), "{bad}");
        }
        assert!(!format!("{one:?}").contains("PRIVATE"));
    }
}
