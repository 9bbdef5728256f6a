//! The server's own authority, which signs its certificate where the operator has none.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

/// An authority that is kept in the data directory, and whose certificate clients have to be told to trust.
///
/// Whoever has its key can pretend to be any server to the clients that trust it.
pub(super) struct Authority {
    /// Where its certificate is.
    path: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority of a directory, which is made where there is none. It is good for twenty years.
    pub(super) fn open(directory: &Path) -> anyhow::Result<Self> {
        let (path, key_path) = (directory.join("authority.pem"), directory.join("authority.key"));
        let made = DirBuilder::new().mode(0o700).recursive(true).create(directory);
        made.with_context(|| format!("{} cannot be made", directory.display()))?;
        let key = match std::fs::read_to_string(&key_path) {
            Ok(pem) => KeyPair::from_pem(&pem).with_context(|| {
                format!("{} has no key: restore it from a copy, or remove {}", key_path.display(), directory.display())
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().context("no key can be made")?;
                write(&key_path, &key.serialize_pem())?;
                key
            }
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", key_path.display())),
        };
        if !path.exists() {
            let certificate = params_of(&key).self_signed(&key).context("no certificate can be made")?;
            write(&path, &certificate.pem())?;
        }
        Ok(Self { path, issuer: Issuer::new(params_of(&key), key) })
    }

    /// Where its certificate is, in PEM.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A new certificate for these names and addresses, with a new key. It is good for 90 days.
    pub(super) fn sign(&self, names: &[String], now: SystemTime) -> anyhow::Result<CertifiedKey> {
        let key = KeyPair::generate().context("no key can be made")?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| subject(name)).collect::<anyhow::Result<_>>()?;
        params.distinguished_name = DistinguishedName::new();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // Clients refuse a number that they have seen of the same authority.
        params.serial_number = Some(SerialNumber::from(positive(rand::random())));
        // A client's clock may be a little behind.
        params.not_before = (now - DAY).into();
        params.not_after = (now + VALID_FOR).into();
        let certificate = params.signed_by(&key, &self.issuer).context("no certificate can be made")?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(CertifiedKey::from_der(vec![certificate.into()], key, &ring::default_provider())?)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What an authority's certificate says: its name follows from its key, so that what it signs names it as that does.
fn params_of(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let tail = key.public_key_raw().iter().rev().take(6).map(|byte| format!("{byte:02x}"));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("wrenn-server's own {}", tail.collect::<String>()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + AUTHORITY_VALID_FOR).into();
    params
}

fn subject(name: &str) -> anyhow::Result<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let dns_name = name.try_into().map_err(|error| {
        anyhow::anyhow!("{name:?} can be no name in a certificate, such as one with --domain: {error}")
    });
    Ok(SanType::DnsName(dns_name?))
}

/// A serial number is positive, and its first byte no zero (RFC 5280, section 4.1.2.2).
fn positive(mut random: [u8; 16]) -> Vec<u8> {
    if let Some(first) = random.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    random.to_vec()
}

/// Whole, or not there; for the server's user alone.
fn write(path: &Path, pem: &str) -> anyhow::Result<()> {
    let whole = path.with_extension("new");
    let written = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&whole)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&whole, path)
    };
    written().with_context(|| format!("{} cannot be written", path.display()))
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const VALID_FOR: Duration = Duration::from_secs(90 * 24 * 3600);
const AUTHORITY_VALID_FOR: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
