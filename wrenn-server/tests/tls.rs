//! TLS of the server's own, as clients meet it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "../../wrenn-envd/tests/e2b_client/mod.rs"]
mod e2b_client;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Server, can_run, data_dir, new_key};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// As its documentation says: the domain and the key, and an authority to trust.
#[test]
fn the_newest_python_client_wants_a_domain_and_a_key_alone() {
    const TEST: &str = "the_newest_python_client_wants_a_domain_and_a_key_alone";
    if !can_run(TEST) {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: {TEST}: no root, which the port 443 takes");
    }
    let requirements = e2b_client::sources().join("requirements.txt");
    let python = match e2b_client::environment(&requirements, "e2b-python") {
        Ok(python) => python,
        Err(reason) => return println!("skipped: {TEST}: {reason}"),
    };
    let dir = data_dir();
    let key = new_key(dir.path(), "ada");
    let address = own_loopback();
    let names = UdpSocket::bind((address, 53)).unwrap();
    std::thread::spawn(move || answer_names(&names, address));
    let server = Server::start_at(dir.path(), &format!("{address}:443"), &["--domain", "wrenn.test", "--tls-own"]);

    let resolv = dir.path().join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {address}\noptions attempts:1 timeout:2\n")).unwrap();
    // The client's own resolver reads that file, so that the client has one of its own.
    let mut pytest = Command::new("unshare");
    let script = r#"mount --bind "$1" /etc/resolv.conf && shift && exec "$@""#;
    pytest.args(["--mount", "sh", "-c", script, "sh"]).arg(resolv).arg(python);
    pytest.args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "test_async.py"]);
    pytest.args([
        "test_life.py::test_a_sandbox_is_what_was_asked_for",
        "test_life.py::test_a_pause_keeps_files_processes_and_names",
    ]);
    pytest.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2b_python"));
    for inherited in ["E2B_DEBUG", "E2B_API_URL", "E2B_SANDBOX_URL", "http_proxy", "https_proxy", "all_proxy"] {
        pytest.env_remove(inherited).env_remove(inherited.to_ascii_uppercase());
    }
    pytest.env("E2B_DOMAIN", "wrenn.test").env("E2B_API_KEY", key).env("PYTHONDONTWRITEBYTECODE", "1");
    let ran = pytest.env("SSL_CERT_FILE", authority(dir.path())).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    println!("{said}");
    server.stop();
}

#[test]
fn both_versions_of_http_are_spoken_to_who_asks_for_a_name_of_the_server() {
    if !can_run("both_versions_of_http_are_spoken_to_who_asks_for_a_name_of_the_server") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--domain", "wrenn.test", "--tls-own"]);
    let roots = authority(dir.path());
    for name in ["wrenn.test", "api.wrenn.test", "49983-sb0123456789abcdef.wrenn.test", "localhost", "127.0.0.1"] {
        let mut stream = connect(server.address, &roots, name, &[b"http/1.1"]).unwrap();
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(ask(&mut stream, "api.wrenn.test"), "HTTP/1.1 200 OK", "{name}");
    }
    // What no name of a sandbox is routed by is answered as such.
    let mut stream = connect(server.address, &roots, "api.wrenn.test", &[]).unwrap();
    assert_eq!(ask(&mut stream, "80-sb0123456789abcdef.wrenn.test"), "HTTP/1.1 502 Bad Gateway");
    let mut stream = connect(server.address, &roots, "api.wrenn.test", &[b"h2", b"http/1.1"]).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
    // The preface, and settings without any (RFC 9113, section 3.4): the server answers with its own.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[3], 4, "settings");
    let refused = connect(server.address, &roots, "elsewhere.test", &[]).err().unwrap();
    assert!(refused.to_string().contains("not valid for name"), "{refused}");
    server.stop();
}

#[test]
fn who_says_nothing_is_let_go_and_hinders_nobody() {
    if !can_run("who_says_nothing_is_let_go_and_hinders_nobody") {
        return;
    }
    let dir = data_dir();
    let server = Server::start(dir.path(), &["--tls-own"]);
    let roots = authority(dir.path());
    let began = Instant::now();
    let mut silent = TcpStream::connect(server.address).unwrap();
    let mut stream = connect(server.address, &roots, "localhost", &[]).unwrap();
    assert_eq!(ask(&mut stream, "localhost"), "HTTP/1.1 200 OK");
    silent.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(silent.read(&mut [0; 9]).unwrap_or(0), 0, "it is closed");
    let waited = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&waited), "{waited:?}");
    // Nor does the server's end wait for one.
    let _silent = TcpStream::connect(server.address).unwrap();
    let began = Instant::now();
    server.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_certificate_of_the_operators_is_shown_and_one_that_is_none_is_refused() {
    if !can_run("a_certificate_of_the_operators_is_shown_and_one_that_is_none_is_refused") {
        return;
    }
    let dir = data_dir();
    let (certificate, key) = (dir.path().join("certificate.pem"), dir.path().join("key.pem"));
    let pair = rcgen::generate_simple_self_signed(vec!["wrenn.test".to_owned()]).unwrap();
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let (certificate_arg, key_arg) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let args = ["--tls-cert", certificate_arg, "--tls-key", key_arg];
    let server = Server::start(dir.path(), &args);
    let mut stream = connect(server.address, &certificate, "wrenn.test", &[]).unwrap();
    assert_eq!(ask(&mut stream, "wrenn.test"), "HTTP/1.1 200 OK");
    server.stop();

    std::fs::write(&key, "no key").unwrap();
    let refused = |args: &[&str]| {
        let output = common::output(dir.path(), &[&["serve", "--listen", "127.0.0.1:0"], args].concat());
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&args).contains("has no private key in PEM"));
    assert!(refused(&args[..2]).contains("give both --tls-cert and --tls-key"));
    assert!(refused(&[&args[..], &["--tls-own"]].concat()).contains("leave out --tls-own"));
}

/// An address of this machine that no other test has, as well as not.
fn own_loopback() -> Ipv4Addr {
    let [a, b, c]: [u8; 3] = rand::random();
    Ipv4Addr::new(127, 64 | a & 63, b, c.clamp(1, 254))
}

/// A name server that has one address for all names, and no other records (RFC 1035, section 4).
fn answer_names(socket: &UdpSocket, address: Ipv4Addr) {
    let mut query = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut query) {
        let query = &query[..len];
        let Some(name_len) = query.get(12..).and_then(|rest| rest.iter().position(|byte| *byte == 0)) else { continue };
        let question = &query[12..(12 + name_len + 5).min(len)];
        let is_for_address = question[name_len + 1..] == [0, 1, 0, 1];
        let mut answer = [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::from(is_for_address), 0, 0, 0, 0], question].concat();
        if is_for_address {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address.octets());
        }
        socket.send_to(&answer, from).unwrap();
    }
}

fn authority(data_dir: &Path) -> PathBuf {
    data_dir.join("server/tls/authority.pem")
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(to: SocketAddr, roots: &Path, name: &str, protocols: &[&[u8]]) -> std::io::Result<Tls> {
    let mut trusted = RootCertStore::empty();
    trusted.add(CertificateDer::from_pem_file(roots).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(trusted).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let mut socket = TcpStream::connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(tls, socket))
}

/// The first line of an answer.
fn ask(stream: &mut Tls, host: &str) -> String {
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}
