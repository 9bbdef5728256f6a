//! Web servers, by TLS with an authority of their own or without, and clients of them.
#![allow(dead_code, clippy::unwrap_used, reason = "tests; each file uses a part")]

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Either, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// An authority that certifies servers.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::default());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Serves these names by TLS, and speaks these protocols.
    pub(crate) fn serve(&self, listener: TcpListener, names: &[&str], protocols: &[&str]) {
        let acceptor = self.acceptor(names, protocols);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let (acceptor, at) = (acceptor.clone(), stream.local_addr().unwrap().ip().to_string());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve(stream, is_http2, at).await;
                });
            }
        });
    }

    /// Serves the files of a directory by TLS: those of each name in a directory of that name.
    pub(crate) fn serve_files(&self, listener: TcpListener, names: &[&str], root: PathBuf) {
        let acceptor = self.acceptor(names, &["http/1.1"]);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, root) = (acceptor.clone(), root.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| std::future::ready(file(&root, &request)));
                    let server = hyper::server::conn::http1::Builder::new();
                    server.serve_connection(TokioIo::new(stream), service).await.ok();
                });
            }
        });
    }

    /// TLS of a server with these names, which speaks these protocols.
    pub(crate) fn acceptor(&self, names: &[&str], protocols: &[&str]) -> TlsAcceptor {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let (key, params) = (KeyPair::generate().unwrap(), CertificateParams::new(names).unwrap());
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.into()], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

fn file(root: &Path, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let name = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let path = root.join(name).join(request.uri().path().trim_start_matches('/'));
    let path = if path.is_dir() { path.join("index.html") } else { path };
    let (status, body) = match std::fs::read(&path) {
        Ok(bytes) => (StatusCode::OK, bytes),
        Err(_) => (StatusCode::NOT_FOUND, Vec::new()),
    };
    let kind = if path.extension().is_some_and(|extension| extension == "html") { "text/html" } else { BYTES };
    Ok(Response::builder().status(status).header(header::CONTENT_TYPE, kind).body(body.into()).unwrap())
}

const BYTES: &str = "application/octet-stream";

/// Serves without TLS.
pub(crate) fn serve_plain(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).ok();
            let at = stream.local_addr().unwrap().ip().to_string();
            tokio::spawn(serve(stream, false, at));
        }
    });
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, is_http2: bool, at: String) {
    let service = service_fn(move |request| answer(request, at.clone()));
    let stream = TokioIo::new(stream);
    if is_http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(stream, service).await.ok();
    } else {
        let server = hyper::server::conn::http1::Builder::new();
        server.serve_connection(stream, service).with_upgrades().await.ok();
    }
}

/// What the bytes of an `Authorization` come to, so that a server can tell it without telling it.
pub(crate) fn sum(authorization: &str) -> u32 {
    authorization.bytes().fold(7, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// To `/echo` what was sent, as it comes; to `/sum` the [`sum`]; else where this is, and what was asked.
async fn answer(
    mut request: Request<Incoming>,
    at: String,
) -> Result<Response<Either<Incoming, Full<Bytes>>>, Infallible> {
    if request.headers().contains_key(header::UPGRADE) {
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgraded.await.unwrap());
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..len].to_ascii_uppercase()).await.unwrap();
            }
            stream.shutdown().await.ok();
        });
        let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS).header("connection", "upgrade");
        let response = response.header("upgrade", "shout").header("x-key", request.headers()["x-key"].clone());
        return Ok(response.body(Either::Right(Full::default())).unwrap());
    }
    if request.uri().path() == "/echo" {
        return Ok(Response::new(Either::Left(request.into_body())));
    }
    if request.uri().path() == "/sum" {
        let value = request.headers().get("authorization").map_or("", |value| value.to_str().unwrap());
        return Ok(Response::new(Either::Right(Full::new(sum(value).to_string().into()))));
    }
    let version = if request.version() == Version::HTTP_2 { "h2" } else { "http/1.1" };
    let mut text = format!("{at} {version} {} {}\n", request.method(), request.uri().path_and_query().unwrap());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\n", value.to_str().unwrap());
    }
    let response = Response::builder().header(header::ALT_SVC, "h3=\":443\"").header("X-Kept", "1");
    Ok(response.body(Either::Right(Full::new(text.into()))).unwrap())
}

/// TLS of a client that trusts these authorities alone.
pub(crate) async fn tls(
    stream: TcpStream,
    name: &str,
    trusts: &str,
    protocols: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trusts.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Sends requests over one connection.
pub(crate) enum Client {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn over_tls(stream: TlsStream<TcpStream>) -> Self {
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Self::over(stream).await;
        }
        let stream = TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Self::Http1(sender)
    }

    /// Sends a request to a URI, as the protocol wants it written.
    pub(crate) async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                let host = request.uri().authority().map(|authority| authority.as_str().parse().unwrap());
                if let Some(host) = host {
                    request.headers_mut().entry(header::HOST).or_insert(host);
                }
                *request.uri_mut() = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// What a server says to a GET with these headers.
    pub(crate) async fn get(&mut self, uri: &str, headers: &[(&str, &str)]) -> (u16, String) {
        self.ask(Request::get(uri), headers).await
    }

    pub(crate) async fn ask(&mut self, request: http::request::Builder, headers: &[(&str, &str)]) -> (u16, String) {
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = self.send(request.body(nothing()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().into()).unwrap())
    }
}

pub(crate) fn nothing() -> Body {
    Full::default().boxed_unsync()
}

/// A body that is sent as it comes.
pub(crate) fn channel() -> (tokio::sync::mpsc::Sender<Bytes>, Body) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let stream = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|it| it.map(|it| Ok(Frame::data(it)))));
    (sender, StreamBody::new(stream).boxed_unsync())
}
