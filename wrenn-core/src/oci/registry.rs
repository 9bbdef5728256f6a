//! A registry, asked by the distribution protocol: <https://github.com/opencontainers/distribution-spec>
//!
//! `oci-client` knows how to get a token. What it does beyond has no limit in size, and no resumption.

use std::error::Error;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use crate::oci::certificates;
use crate::oci::credentials;
use crate::oci::digest::Digest;
use crate::oci::error::OciError;
use crate::oci::identity::{Refusal, TokenServer};
use crate::oci::manifest::Document;
use crate::oci::options::{Credentials, PullOptions};

/// One image's repository, and where it can be had from: mirrors, and then the registry itself.
pub(super) struct Registry {
    endpoints: Vec<Endpoint>,
    stall: Duration,
    retries: u32,
}

struct Endpoint {
    /// With the mirror in it.
    reference: Reference,
    base: String,
    client: reqwest::Client,
    known: Credentials,
    tokens: oci_client::Client,
    is_plain: bool,
    /// The header that was good last.
    header: Mutex<Option<String>>,
    /// A mirror that failed is not asked again.
    failed: AtomicBool,
}

/// What is told while something is fetched.
pub(super) enum Event<'a> {
    Bytes(u64),
    Retry { what: &'a str, error: &'a OciError },
}

pub(super) type Tell<'a> = dyn Fn(Event<'_>) + Send + Sync + 'a;

impl Registry {
    pub(super) async fn connect(reference: &Reference, options: &PullOptions) -> Result<Self, OciError> {
        // The provider that the rest of wrenn uses, unless the program has chosen one.
        rustls::crypto::ring::default_provider().install_default().ok();
        let registry = reference.registry();
        let mirrors = options.mirrors.iter().filter(|(name, _)| name == registry).flat_map(|(_, hosts)| hosts);
        let mut endpoints = Vec::new();
        for mirror in mirrors {
            let mut mirrored = reference.clone();
            mirrored.set_mirror_registry(mirror.clone());
            let known = credentials::of(mirror, options.docker_config.as_deref()).await?;
            endpoints.push(Endpoint::new(mirrored, mirror, known, options).await?);
        }
        let known = match &options.credentials {
            Some(given) => given.clone(),
            None => credentials::of(registry, options.docker_config.as_deref()).await?,
        };
        endpoints.push(Endpoint::new(reference.clone(), registry, known, options).await?);
        Ok(Self { endpoints, stall: options.stall, retries: options.retries })
    }

    /// The bytes of a manifest or an index: of the `digest`, or of what the reference says. The digest is checked where
    /// there is one.
    pub(super) async fn manifest(
        &self,
        digest: Option<Digest>,
        limit: u64,
        tell: &Tell<'_>,
    ) -> Result<Vec<u8>, OciError> {
        let reference = self.reference();
        let named = match digest {
            Some(digest) => digest.to_string(),
            None => reference.digest().or_else(|| reference.tag()).unwrap_or("latest").to_owned(),
        };
        let what = format!("the manifest {named} of {}", reference.repository());
        let accept = Document::accepted();
        let path = format!("manifests/{named}");
        let attempt = || self.whole(&path, &what, Some(&accept), limit);
        let bytes = self.retrying(&what, tell, &AtomicBool::new(false), attempt).await?;
        if let Ok(expected) = Digest::parse(&named, &what) {
            expected.check(Digest::of(&bytes), what)?;
        }
        Ok(bytes)
    }

    /// The bytes of a blob that is no layer.
    pub(super) async fn small(&self, digest: Digest, limit: u64, tell: &Tell<'_>) -> Result<Vec<u8>, OciError> {
        let what = format!("the blob {digest}");
        let path = format!("blobs/{digest}");
        let attempt = || self.whole(&path, &what, None, limit);
        let bytes = self.retrying(&what, tell, &AtomicBool::new(false), attempt).await?;
        digest.check(Digest::of(&bytes), what)?;
        Ok(bytes)
    }

    /// Sends the bytes of a layer. An attempt after the first goes on where the one before broke off. That whoever reads
    /// them has gone is no error here.
    pub(super) async fn layer(
        &self,
        digest: Digest,
        size: u64,
        to: mpsc::Sender<Bytes>,
        tell: &Tell<'_>,
    ) -> Result<(), OciError> {
        let what = format!("the layer {digest}");
        let path = format!("blobs/{digest}");
        let received = std::sync::atomic::AtomicU64::new(0);
        let progressed = AtomicBool::new(false);
        let attempt = || async {
            let start = received.load(Ordering::Relaxed);
            if start == size {
                return Ok(());
            }
            let mut response = self.get(&path, &what, None, start).await?;
            let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT {
                let range =
                    response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
                if !range.starts_with(&format!("bytes {start}-")) {
                    return Err(OciError::malformed(&*what, format!("the registry answers with the range `{range}`")));
                }
                0
            } else {
                start
            };
            while let Some(mut chunk) = self.chunk(&mut response, &what).await? {
                let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
                skip -= chunk.split_to(skipped).len() as u64;
                if chunk.is_empty() {
                    continue;
                }
                progressed.store(true, Ordering::Relaxed);
                let count = chunk.len() as u64;
                if received.fetch_add(count, Ordering::Relaxed) + count > size {
                    return Err(OciError::malformed(
                        &*what,
                        format!("it is longer than the {size} bytes that the manifest says"),
                    ));
                }
                tell(Event::Bytes(count));
                if to.send(chunk).await.is_err() {
                    return Ok(());
                }
            }
            let got = received.load(Ordering::Relaxed);
            if got < size {
                let source = format!("{what} ended after {got} of {size} bytes").into();
                return Err(OciError::Transport { registry: self.reference().registry().to_owned(), source });
            }
            Ok(())
        };
        self.retrying(&what, tell, &progressed, attempt).await
    }

    fn reference(&self) -> &Reference {
        // `connect` puts the registry itself there.
        &self.endpoints[self.endpoints.len() - 1].reference
    }

    /// An attempt sets `progressed` where it has brought something.
    async fn retrying<T, Attempt>(
        &self,
        what: &str,
        tell: &Tell<'_>,
        progressed: &AtomicBool,
        attempt: impl Fn() -> Attempt,
    ) -> Result<T, OciError>
    where
        Attempt: Future<Output = Result<T, OciError>>,
    {
        let mut failures = 0;
        for total in 0.. {
            progressed.store(false, Ordering::Relaxed);
            let error = match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            failures = if progressed.load(Ordering::Relaxed) { 1 } else { failures + 1 };
            if !error.is_retryable() || failures > self.retries || total >= ATTEMPTS_MAX {
                return Err(error);
            }
            tell(Event::Retry { what, error: &error });
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(failures.min(5))).await;
        }
        unreachable!("the loop ends by itself")
    }

    async fn whole(&self, path: &str, what: &str, accept: Option<&str>, limit: u64) -> Result<Vec<u8>, OciError> {
        let mut response = self.get(path, what, accept, 0).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, what).await? {
            bytes.extend(chunk);
            if bytes.len() as u64 > limit {
                return Err(OciError::Limit { what: format!("the length of {what}"), limit });
            }
        }
        Ok(bytes)
    }

    async fn chunk(&self, response: &mut Response, what: &str) -> Result<Option<Bytes>, OciError> {
        match timeout(self.stall, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| self.broken(error)),
            Err(_) => Err(self.stalled(what)),
        }
    }

    async fn get(&self, path: &str, what: &str, accept: Option<&str>, start: u64) -> Result<Response, OciError> {
        let (last, mirrors) =
            self.endpoints.split_last().unwrap_or_else(|| unreachable!("there is always the registry"));
        for mirror in mirrors.iter().filter(|mirror| !mirror.failed.load(Ordering::Relaxed)) {
            match self.ask(mirror, path, what, accept, start).await {
                Ok(response) => return Ok(response),
                Err(error) => {
                    tracing::debug!(mirror = mirror.base, %error, "a mirror is passed over");
                    mirror.failed.store(true, Ordering::Relaxed);
                }
            }
        }
        self.ask(last, path, what, accept, start).await
    }

    async fn ask(
        &self,
        at: &Endpoint,
        path: &str,
        what: &str,
        accept: Option<&str>,
        start: u64,
    ) -> Result<Response, OciError> {
        let url = at.url(path);
        let send = async |header: Option<String>| {
            let mut request = at.client.get(&url);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if start > 0 {
                request = request.header(RANGE, format!("bytes={start}-"));
            }
            if let Some(header) = header {
                request = request.header(AUTHORIZATION, header);
            }
            let sent = timeout(self.stall, request.send()).await.map_err(|_| self.stalled(what))?;
            sent.map_err(|error| self.broken(error))
        };
        let known = at.header.lock().await.clone();
        let mut response = send(known).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let header =
                timeout(self.stall, at.authorize(response.headers())).await.map_err(|_| self.stalled("a token"))??;
            if header.is_some() {
                at.header.lock().await.clone_from(&header);
                response = send(header).await?;
            }
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::NOT_FOUND => Err(OciError::NotFound { what: format!("{what} in {}", at.reference.registry()) }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(OciError::Denied {
                registry: at.reference.resolve_registry().to_owned(),
                repository: at.reference.repository().to_owned(),
                reason: message(response).await,
            }),
            status => {
                let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
                let message = message(response).await;
                if status == StatusCode::TOO_MANY_REQUESTS {
                    tokio::time::sleep(Duration::from_secs(wait.unwrap_or(0)).min(WAIT_MAX)).await;
                }
                Err(OciError::Status { url, code: status.as_u16(), message })
            }
        }
    }

    fn broken(&self, error: reqwest::Error) -> OciError {
        OciError::Transport { registry: self.reference().registry().to_owned(), source: error.into() }
    }

    fn stalled(&self, what: &str) -> OciError {
        OciError::Stalled { what: what.to_owned(), after: self.stall }
    }
}

impl Endpoint {
    async fn new(
        reference: Reference,
        host: &str,
        known: Credentials,
        options: &PullOptions,
    ) -> Result<Self, OciError> {
        let mut authorities = options.authorities.clone();
        authorities.extend(certificates::authorities(host, &options.certificates).await?);
        let is_named = options.plain_http.iter().any(|name| name == host);
        let is_plain = is_named || (is_loopback(host) && authorities.is_empty());
        let address = reference.resolve_registry();
        let base = format!("{}://{address}/v2/{}", if is_plain { "http" } else { "https" }, reference.repository());
        let client = client(&authorities)
            .map_err(|error| OciError::Transport { registry: host.to_owned(), source: error.into() })?;
        let certificate = |data| Certificate { encoding: CertificateEncoding::Pem, data };
        let config = ClientConfig {
            protocol: if is_plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: authorities.into_iter().map(certificate).collect(),
            connect_timeout: Some(CONNECT_TIME),
            read_timeout: Some(options.stall),
            user_agent: AGENT,
            ..ClientConfig::default()
        };
        let fault =
            |error: OciDistributionError| OciError::Transport { registry: host.to_owned(), source: error.into() };
        let tokens = oci_client::Client::try_from(config).map_err(fault)?;
        let (header, failed) = (Mutex::new(None), AtomicBool::new(false));
        Ok(Self { reference, base, client, known, tokens, is_plain, header, failed })
    }

    /// A mirror is told whose image it is.
    fn url(&self, path: &str) -> String {
        let namespace = self.reference.namespace().map(|name| format!("?ns={name}")).unwrap_or_default();
        format!("{}/{path}{namespace}", self.base)
    }

    /// What to send to a registry that has answered with these headers, if anything would help.
    async fn authorize(&self, refusal: &HeaderMap) -> Result<Option<String>, OciError> {
        let auth = match &self.known {
            Credentials::Identity(token) => return self.identify(refusal, token).await,
            Credentials::Anonymous => RegistryAuth::Anonymous,
            Credentials::Basic { user, password } => RegistryAuth::Basic(user.clone(), password.clone()),
            Credentials::Token(token) => RegistryAuth::Bearer(token.clone()),
        };
        match self.tokens.auth(&self.reference, &auth, RegistryOperation::Pull).await {
            Ok(Some(token)) => Ok(Some(format!("Bearer {token}"))),
            Ok(None) => Ok(match auth {
                RegistryAuth::Basic(user, password) => {
                    Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
                }
                _ => None,
            }),
            Err(OciDistributionError::AuthenticationFailure(reason)) => Err(self.denied(&reason)),
            Err(error) => Err(self.broken(error)),
        }
    }

    async fn identify(&self, refusal: &HeaderMap, identity: &str) -> Result<Option<String>, OciError> {
        let Some(server) = TokenServer::of(refusal) else {
            return Err(self.denied("it names no server that takes an identity token"));
        };
        match server.exchange(&self.client, identity, self.reference.repository(), self.is_plain).await {
            Ok(token) => Ok(Some(format!("Bearer {token}"))),
            Err(Refusal::Denied(reason)) => Err(self.denied(&reason)),
            Err(Refusal::Broken(error)) => Err(self.broken(error)),
        }
    }

    fn denied(&self, reason: &str) -> OciError {
        OciError::Denied {
            registry: self.reference.resolve_registry().to_owned(),
            repository: self.reference.repository().to_owned(),
            reason: first_line(reason),
        }
    }

    fn broken(&self, error: impl Into<Box<dyn Error + Send + Sync>>) -> OciError {
        OciError::Transport { registry: self.reference.resolve_registry().to_owned(), source: error.into() }
    }
}

/// A client that trusts the host's authorities and others, in PEM.
fn client(authorities: &[Vec<u8>]) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder().connect_timeout(CONNECT_TIME).user_agent(AGENT);
    // A layer is taken as it is, whatever else in the program has these features of the crate switched on.
    builder = builder.no_gzip().no_zstd().no_brotli().no_deflate();
    for pem in authorities {
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(pem)?);
    }
    builder.build()
}

/// Whether a registry is on this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address: Option<IpAddr> = name.trim_matches(['[', ']']).parse().ok();
    name == "localhost" || address.is_some_and(|address| address.is_loopback())
}

/// What a registry says of an error, shortened.
async fn message(mut response: Response) -> String {
    let mut text = Vec::new();
    while let Ok(Ok(Some(chunk))) = timeout(CONNECT_TIME, response.chunk()).await {
        text.extend(chunk);
        if text.len() > 4096 {
            break;
        }
    }
    first_line(&String::from_utf8_lossy(&text))
}

fn first_line(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    if line.is_empty() { "it gives no reason".to_owned() } else { line.chars().take(300).collect() }
}

const AGENT: &str = concat!("wrenn/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIME: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(125);
const WAIT_MAX: Duration = Duration::from_secs(60);
/// However much each brings.
const ATTEMPTS_MAX: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_this_machine_needs_no_tls() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "localhost.evil.com:5000", "128.0.0.1:1", "10.0.0.1"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
