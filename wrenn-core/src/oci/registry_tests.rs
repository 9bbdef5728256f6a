//! Against Debian's `docker-registry`, or a server of the test's own where a registry has to misbehave.

use std::convert::Infallible;
use std::fs;
use std::net::TcpListener as StdListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::oci::error::OciError;
use crate::oci::limits::Limits;
use crate::oci::options::{Credentials, Progress, PullOptions};
use crate::oci::pull::{Made, make_base, resolve};
use crate::oci::source::Source;
use crate::oci::testing::{Archive, TestImage};

/// A registry that ends with it.
struct Registry {
    child: Child,
    port: u16,
    /// Of the authority of its certificate, where it speaks TLS.
    authority: Option<String>,
    _directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Registry {
    /// `None` where it is not installed, which is printed. With `users`, an `htpasswd` file, it wants to know who asks.
    async fn start(test: &str, users: Option<&str>) -> Option<Self> {
        Self::start_with(test, users, false).await
    }

    async fn start_with(test: &str, users: Option<&str>, has_tls: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let port = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (storage, passwords) = (directory.path().join("storage"), directory.path().join("htpasswd"));
        let auth = users.map_or_else(String::new, |users| {
            fs::write(&passwords, users).unwrap();
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", passwords.display())
        });
        let authority = has_tls.then(|| certify(directory.path()));
        let at = directory.path().display();
        let tls = match has_tls {
            true => format!("  tls:\n    certificate: {at}/certificate.pem\n    key: {at}/key.pem\n"),
            false => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{tls}{auth}",
            storage.display()
        );
        let path = directory.path().join("config.yml");
        fs::write(&path, config).unwrap();
        // Where `cargo xtask setup` puts it, or on the PATH.
        let set_up = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools/usr/bin/docker-registry");
        let program = if set_up.is_file() { set_up } else { "docker-registry".into() };
        let started = Command::new(program).arg("serve").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: {test}: docker-registry: {error}");
                return None;
            }
        };
        let registry = Self { child, port, authority, _directory: directory };
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(registry);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the registry does not listen");
    }

    fn url(&self, path: &str) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}/v2/{path}", self.port)
    }

    async fn push(&self, image: &TestImage, tag: &str, user: Option<(&str, &str)>) {
        rustls::crypto::ring::default_provider().install_default().ok();
        let authorities = self.authority.iter().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
        let client = reqwest::Client::builder().tls_certs_merge(authorities).build().unwrap();
        let send = async |request: reqwest::RequestBuilder| {
            let request = match user {
                Some((name, password)) => request.basic_auth(name, Some(password)),
                None => request,
            };
            let answer = request.send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
            answer
        };
        for (name, bytes) in image.blobs.iter().filter(|(_, bytes)| **bytes != image.manifest) {
            let begun = send(client.post(self.url("me/image/blobs/uploads/"))).await;
            let at = begun.headers()["location"].to_str().unwrap().to_owned();
            let joint = if at.contains('?') { '&' } else { '?' };
            send(client.put(format!("{at}{joint}digest=sha256:{name}")).body(bytes.clone())).await;
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = client.put(self.url(&format!("me/image/manifests/{tag}"))).header("content-type", kind);
        send(manifest.body(image.manifest.clone())).await;
    }

    fn source(&self, tag: &str) -> Source {
        source(self.port, tag)
    }
}

/// Puts a certificate for 127.0.0.1 and its key into a directory, and gives its authority's.
fn certify(directory: &Path) -> String {
    let params = |name: &str| CertificateParams::new(vec![name.to_owned()]).unwrap();
    let keys = || KeyPair::generate().unwrap();
    let mut authority = params("authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, keys()).unwrap();
    let own = keys();
    let certificate = params("127.0.0.1").signed_by(&own, &authority).unwrap();
    fs::write(directory.join("certificate.pem"), certificate.pem()).unwrap();
    fs::write(directory.join("key.pem"), own.serialize_pem()).unwrap();
    authority.pem()
}

fn source(port: u16, tag: &str) -> Source {
    format!("127.0.0.1:{port}/me/image:{tag}").parse().unwrap()
}

/// Nobody's credentials.
fn options() -> PullOptions {
    let (docker_config, certificates) = (Some("/nowhere/config.json".into()), Vec::new());
    PullOptions { docker_config, certificates, ..PullOptions::default() }
}

async fn pull(
    source: &Source,
    options: &PullOptions,
    directory: &Path,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Made, OciError> {
    let base = directory.join("base");
    fs::remove_file(&base).ok();
    make_base(source, options, &directory.join("layers"), &base, progress).await
}

fn image() -> TestImage {
    // It does not compress.
    let mut state = 1_u32;
    let mut noise = |count: usize| -> Vec<u8> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        };
        std::iter::repeat_with(next).take(count).collect()
    };
    let lower = Archive::new().file("large", &noise(3 << 20)).file("gone", b"x");
    let upper = Archive::new().file(".wh.gone", b"").file("other", &noise(1 << 20));
    TestImage::new(&[lower.bytes(), upper.bytes()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_comes_from_a_registry() {
    let Some(registry) = Registry::start("an_image_comes_from_a_registry", None).await else { return };
    let image = image();
    registry.push(&image, "tag", None).await;
    let directory = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    let made = pull(&registry.source("tag"), &options(), directory.path(), &mut |step| told.push(step)).await.unwrap();
    assert_eq!((made.digest, made.layers.len(), made.config.env), (image.digest(), 2, vec!["A=b".to_owned()]));
    let bytes: usize = image.layers.iter().map(Vec::len).sum();
    assert!(told.contains(&Progress::Downloaded { bytes: bytes as u64 }), "{told:?}");
    assert_eq!(resolve(&registry.source("tag"), &options()).await.unwrap(), image.digest());
    let pinned = format!("127.0.0.1:{}/me/image@{}", registry.port, image.digest()).parse().unwrap();
    pull(&pinned, &options(), directory.path(), &mut |_| {}).await.unwrap();
    let local = tempfile::tempdir().unwrap();
    let layout = Source::Layout { path: image.layout(local.path()), tag: None };
    pull(&layout, &options(), local.path(), &mut |_| {}).await.unwrap();
    assert!(fs::read(local.path().join("base")).unwrap() == fs::read(directory.path().join("base")).unwrap());

    let error = pull(&registry.source("absent"), &options(), directory.path(), &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, OciError::NotFound { .. }), "{error}");
    let limits = Limits { manifest_bytes: 100, ..Limits::default() };
    let error = resolve(&registry.source("tag"), &PullOptions { limits, ..options() }).await.unwrap_err();
    assert!(matches!(error, OciError::Limit { .. }), "{error}");
    // A mirror that is not there is passed over.
    let mirrors = vec![(format!("127.0.0.1:{}", registry.port), vec!["127.0.0.1:9".to_owned()])];
    resolve(&registry.source("tag"), &PullOptions { mirrors, ..options() }).await.unwrap();
    let mirrors = vec![("registry.invalid".to_owned(), vec![format!("127.0.0.1:{}", registry.port)])];
    let mirrored: Source = "registry.invalid/me/image:tag".parse().unwrap();
    assert_eq!(resolve(&mirrored, &PullOptions { mirrors, ..options() }).await.unwrap(), image.digest());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_asks_who_it_is_is_told() {
    const TEST: &str = "a_registry_that_asks_who_it_is_is_told";
    let Some(registry) = Registry::start(TEST, Some(USERS)).await else { return };
    let image = image();
    registry.push(&image, "tag", Some(("me", "sesame"))).await;
    let source = registry.source("tag");
    let as_who = |credentials| PullOptions { credentials: Some(credentials), ..options() };
    let basic = |password: &str| Credentials::Basic { user: "me".to_owned(), password: password.to_owned() };
    for refused in [as_who(Credentials::Anonymous), as_who(basic("wrong")), options()] {
        let error = resolve(&source, &refused).await.unwrap_err();
        assert!(matches!(error, OciError::Denied { .. }) && error.to_string().contains("docker login"), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    pull(&source, &as_who(basic("sesame")), directory.path(), &mut |_| {}).await.unwrap();
    let config = directory.path().join("config.json");
    let text = serde_json::json!({"auths": {format!("127.0.0.1:{}", registry.port): {"username": "me", "password": "sesame"}}});
    fs::write(&config, text.to_string()).unwrap();
    resolve(&source, &PullOptions { docker_config: Some(config), ..options() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_of_a_private_authority_is_trusted_by_a_setting_or_by_a_directory_for_it() {
    const TEST: &str = "a_registry_of_a_private_authority_is_trusted_by_a_setting_or_by_a_directory_for_it";
    let Some(registry) = Registry::start_with(TEST, Some(USERS), true).await else { return };
    let image = image();
    registry.push(&image, "tag", Some(("me", "sesame"))).await;
    let (source, pem) = (registry.source("tag"), registry.authority.clone().unwrap());
    let basic = |password: &str| Credentials::Basic { user: "me".to_owned(), password: password.to_owned() };
    let known = PullOptions { credentials: Some(basic("sesame")), retries: 0, ..options() };
    let given = PullOptions { authorities: vec![pem.clone().into_bytes()], ..known.clone() };
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(pull(&source, &given, directory.path(), &mut |_| {}).await.unwrap().digest, image.digest());
    let host = directory.path().join("certs.d").join(format!("127.0.0.1:{}", registry.port));
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("ca.crt"), &pem).unwrap();
    let found = PullOptions { certificates: vec![directory.path().join("certs.d")], ..known.clone() };
    assert_eq!(resolve(&source, &found).await.unwrap(), image.digest());

    let wrong = PullOptions { credentials: Some(basic("wrong")), ..given };
    let error = resolve(&source, &wrong).await.unwrap_err();
    assert!(matches!(error, OciError::Denied { .. }), "{error}");
    let another = certify(directory.path()).into_bytes();
    let distrusted = PullOptions { authorities: vec![another], ..known.clone() };
    let error = resolve(&source, &distrusted).await.unwrap_err();
    let said = crate::error::chain(&error);
    assert!(matches!(error, OciError::Transport { .. }) && said.contains("certificate"), "{said}");
    // One of this machine that nobody vouches for is asked without TLS.
    let error = resolve(&source, &known).await.unwrap_err();
    assert!(matches!(error, OciError::Status { code: 400, .. }), "{error}");
}

/// Stands before a registry, and wants one header of those who ask. It is a token server, too: it gives a token for an
/// identity token.
async fn gate(registry: u16, wanted: String, identity: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = move |request: Request<Incoming>| {
        let wanted = wanted.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let answer = |status: u16| Response::builder().status(status);
            if head.uri.path() == "/token" {
                let form = String::from_utf8(body.to_vec()).unwrap();
                let asked = ["grant_type=refresh_token", "service=the%20gate", "scope=repository%3Ame%2Fimage%3Apull"];
                let is_good = asked.iter().all(|part| form.split('&').any(|field| field == *part))
                    && form.ends_with(&format!("&refresh_token={identity}"));
                let token = wanted.strip_prefix("Bearer ").filter(|_| is_good);
                return Ok::<_, Infallible>(match token {
                    Some(token) => {
                        answer(200).body(Full::new(format!(r#"{{"access_token":"{token}"}}"#).into())).unwrap()
                    }
                    None => answer(401).body(Full::new("no such identity".into())).unwrap(),
                });
            }
            if head.headers.get("authorization").is_none_or(|header| *header != *wanted) {
                let challenge = match wanted.starts_with("Bearer ") {
                    true => format!(r#"Bearer realm="http://127.0.0.1:{port}/token",service="the gate",scope="x""#),
                    false => r#"Basic realm="the gate""#.to_owned(),
                };
                let refused = answer(401).header("www-authenticate", challenge);
                return Ok(refused.body(Full::new(Bytes::new())).unwrap());
            }
            let url = format!("http://127.0.0.1:{registry}{}", head.uri);
            let kinds = head.headers.get("accept").cloned().unwrap_or_else(|| "*/*".parse().unwrap());
            let from = reqwest::Client::new().get(url).header("accept", kinds).send().await.unwrap();
            let to = answer(from.status().as_u16());
            Ok(to.body(Full::new(from.bytes().await.unwrap())).unwrap())
        }
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer.clone()));
            tokio::spawn(serve);
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_token_is_exchanged_for_one_that_the_registry_takes() {
    const TEST: &str = "an_identity_token_is_exchanged_for_one_that_the_registry_takes";
    let Some(registry) = Registry::start(TEST, None).await else { return };
    let image = image();
    registry.push(&image, "tag", None).await;
    let port = gate(registry.port, "Bearer for-a-while".to_owned(), "for%2Dlong").await;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.json");
    let docker = |token: &str| {
        let text = serde_json::json!({"auths": {format!("127.0.0.1:{port}"): {"identitytoken": token}}});
        fs::write(&config, text.to_string()).unwrap();
        PullOptions { docker_config: Some(config.clone()), ..options() }
    };
    let made = pull(&source(port, "tag"), &docker("for-long"), directory.path(), &mut |_| {}).await.unwrap();
    assert_eq!(made.digest, image.digest());
    let error = resolve(&source(port, "tag"), &docker("stolen")).await.unwrap_err();
    assert!(matches!(&error, OciError::Denied { reason, .. } if reason.contains("no such identity")), "{error}");
    // A registry that has no such server says so.
    let basic = gate(registry.port, "Basic x".to_owned(), "").await;
    let identity = PullOptions { credentials: Some(Credentials::Identity("for-long".to_owned())), ..options() };
    let error = resolve(&source(basic, "tag"), &identity).await.unwrap_err();
    assert!(matches!(&error, OciError::Denied { reason, .. } if reason.contains("identity token")), "{error}");
}

/// As that of ECR, whose user is `AWS` and whose password is a token of some 2 KB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_may_be_long() {
    let Some(registry) = Registry::start("a_password_may_be_long", None).await else { return };
    let image = image();
    registry.push(&image, "tag", None).await;
    let password = "eyJwYXlsb2FkIjoi/+=".repeat(120);
    let pair = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("AWS:{password}"));
    let port = gate(registry.port, format!("Basic {pair}"), "").await;
    let as_who = |password: &str| {
        let (user, password) = ("AWS".to_owned(), password.to_owned());
        PullOptions { credentials: Some(Credentials::Basic { user, password }), ..options() }
    };
    assert_eq!(resolve(&source(port, "tag"), &as_who(&password)).await.unwrap(), image.digest());
    let error = resolve(&source(port, "tag"), &as_who(&password[1..])).await.unwrap_err();
    assert!(matches!(error, OciError::Denied { .. }), "{error}");
}

/// Passes connections on, and each of the first `times` ends after so many bytes of answers: with a cut, or in silence.
async fn disturbed(to: u16, bytes: usize, times: usize, silent: bool) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, cuts) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = cuts.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let cuts = counted.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mut asks, mut hears) = client.split();
                let (mut answers, mut takes) = server.split();
                let back = async {
                    let (mut left, mut buffer) = (bytes, vec![0; 4096]);
                    while let Ok(count @ 1..) = answers.read(&mut buffer).await {
                        let cutting = cuts.load(Ordering::SeqCst) < times;
                        hears.write_all(&buffer[..if cutting { count.min(left) } else { count }]).await?;
                        left = left.saturating_sub(count);
                        if left == 0 && cuts.load(Ordering::SeqCst) < times {
                            cuts.fetch_add(1, Ordering::SeqCst);
                            if silent {
                                std::future::pending::<()>().await;
                            }
                            break;
                        }
                    }
                    Ok::<(), std::io::Error>(())
                };
                tokio::select! {
                    _ = tokio::io::copy(&mut asks, &mut takes) => {}
                    _ = back => {}
                }
            });
        }
    });
    (port, cuts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_breaks_off_goes_on() {
    let Some(registry) = Registry::start("a_download_that_breaks_off_goes_on", None).await else { return };
    let image = image();
    registry.push(&image, "tag", None).await;
    for silent in [false, true] {
        let (port, cuts) = disturbed(registry.port, 700_000, 3, silent).await;
        let directory = tempfile::tempdir().unwrap();
        let (mut reasons, mut bytes) = (Vec::new(), 0);
        let mut progress = |step: Progress| match step {
            Progress::Retrying { reason, .. } => reasons.push(reason),
            Progress::Downloaded { bytes: sum } => bytes = sum,
            _ => {}
        };
        let options = PullOptions { stall: Duration::from_secs(2), ..options() };
        pull(&source(port, "tag"), &options, directory.path(), &mut progress).await.unwrap();
        assert!(cuts.load(Ordering::SeqCst) >= 3 && reasons.len() >= 3, "{reasons:?}");
        assert_eq!(reasons.iter().any(|reason| reason.contains("stalls")), silent, "{reasons:?}");
        let whole: usize = image.layers.iter().map(Vec::len).sum();
        assert_eq!(bytes, whole as u64, "what had come came again");
    }
    // Where nothing comes at all, the end says so.
    let (port, _) = disturbed(registry.port, 1, usize::MAX, true).await;
    let options = PullOptions { stall: Duration::from_millis(200), retries: 1, ..options() };
    let error = resolve(&source(port, "tag"), &options).await.unwrap_err();
    assert!(matches!(error, OciError::Stalled { .. }) && error.is_retryable(), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_given_up_leaves_nothing_half_made() {
    let Some(registry) = Registry::start("a_pull_that_is_given_up_leaves_nothing_half_made", None).await else {
        return;
    };
    registry.push(&image(), "tag", None).await;
    let (port, cuts) = disturbed(registry.port, 500_000, usize::MAX, true).await;
    let directory = tempfile::tempdir().unwrap();
    let (source, options, mut quiet) = (source(port, "tag"), options(), |_: Progress| {});
    tokio::select! {
        _ = pull(&source, &options, directory.path(), &mut quiet) => panic!("it ended"),
        () = async { while cuts.load(Ordering::SeqCst) == 0 { tokio::time::sleep(Duration::from_millis(10)).await } } => {}
    }
    let staged = || {
        let entries = fs::read_dir(directory.path().join("layers")).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-")).count()
    };
    for _ in 0..200 {
        if staged() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(staged(), 0);
    pull(&registry.source("tag"), &options, directory.path(), &mut quiet).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_answers_is_no_registry() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            assert!(client.read(&mut buffer).await.is_ok_and(|count| count > 0));
            let body = "<html>portal</html>";
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            client.write_all(answer.as_bytes()).await.ok();
        }
    });
    let error = resolve(&source(port, "tag"), &options()).await.unwrap_err();
    assert!(matches!(error, OciError::Malformed { .. }), "{error}");
}

/// `me` with the password `sesame`, by bcrypt.
const USERS: &str = "me:$2b$05$VWAcNgZa7Cs6p4TmdYY4HunJ/qkTpuLyhzCuGSb0/1UWdt0VPRdvS\n";
