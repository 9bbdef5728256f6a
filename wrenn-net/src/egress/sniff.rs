//! The name that a connection tells of itself, in its first bytes.

#[cfg(test)]
#[path = "../../tests/world/client_hello.rs"]
mod client_hello;

use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// What a connection begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A name, in lower case.
    Name(String),
    /// It is TLS or HTTP, and has none.
    Nameless,
    /// It is something else, or waits for the server to begin.
    Other,
}

/// Reads until the name is told, and what was read. `first_max` is how long a guest may be silent before it is taken to wait
/// for the server.
pub(super) async fn read_name(guest: &mut TcpStream, first_max: Duration) -> std::io::Result<(Told, Vec<u8>)> {
    let mut bytes = Vec::new();
    let begun = Instant::now();
    loop {
        let patience = if bytes.is_empty() { first_max } else { first_max + ALL_MAX };
        let Ok(read) = timeout_at(begun + patience, guest.read_buf(&mut bytes)).await else {
            return Ok((if bytes.is_empty() { Told::Other } else { Told::Nameless }, bytes));
        };
        if read? == 0 {
            return Ok((told(&bytes).unwrap_or(Told::Nameless), bytes));
        }
        if let Some(told) = told(&bytes) {
            return Ok((told, bytes));
        }
        if bytes.len() > BYTES_MAX {
            return Ok((Told::Nameless, bytes));
        }
    }
}

/// Whether a connection that begins with these bytes is TLS.
pub(super) fn is_tls(bytes: &[u8]) -> bool {
    bytes.first() == Some(&TLS_HANDSHAKE)
}

/// What the bytes tell; `None` if it takes more of them.
pub(super) fn told(bytes: &[u8]) -> Option<Told> {
    match bytes {
        [] => None,
        [TLS_HANDSHAKE, ..] => server_name(bytes),
        _ if may_be_http(bytes) => host(bytes),
        _ => Some(Told::Other),
    }
}

fn server_name(mut bytes: &[u8]) -> Option<Told> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                return Some(name.map_or(Told::Nameless, Told::Name));
            }
            Ok(None) => {}
            Err(_) => return Some(Told::Nameless),
        }
    }
    None
}

/// A method of letters, as far as it is there.
fn may_be_http(bytes: &[u8]) -> bool {
    let method = bytes.split(|&byte| byte == b' ').next().unwrap_or_default();
    !method.is_empty() && method.len() <= METHOD_MAX && method.iter().all(u8::is_ascii_uppercase)
}

fn host(bytes: &[u8]) -> Option<Told> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
            let (first, second) = (hosts.next(), hosts.next());
            let value = first.filter(|_| second.is_none()).and_then(|host| std::str::from_utf8(host.value).ok());
            let name = value.map(|value| value.split(':').next().unwrap_or_default().trim_end_matches('.'));
            Some(match name {
                Some(name) if !name.is_empty() => Told::Name(name.to_ascii_lowercase()),
                _ => Told::Nameless,
            })
        }
        // Such as a protocol that begins with letters.
        Err(_) => Some(Told::Other),
    }
}

const TLS_HANDSHAKE: u8 = 0x16;
/// A guest that says nothing for so long waits for the server, as with SSH or SMTP.
pub(super) const FIRST_MAX: Duration = Duration::from_millis(500);
/// The same where rules are for what it may say: a program that is slow to speak is not to be taken past them.
pub(super) const FIRST_MAX_WITH_RULES: Duration = Duration::from_secs(30);
const ALL_MAX: Duration = Duration::from_secs(10);
/// A ClientHello with keys of post-quantum cryptography has some two thousand; a head of HTTP rarely more than eight.
const BYTES_MAX: usize = 64 << 10;
const METHOD_MAX: usize = 20;
const HEADERS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::client_hello::client_hello;
    use super::*;

    fn name(name: &str) -> Option<Told> {
        Some(Told::Name(name.to_owned()))
    }

    #[test]
    fn http_tells_its_host_once_it_is_whole() {
        let head = b"GET / HTTP/1.1\r\nAccept: */*\r\nhOST: API.example.com:8080\r\n\r\n";
        for len in 1..head.len() {
            assert_eq!(told(&head[..len]), None, "{len}");
        }
        assert_eq!(told(head), name("api.example.com"));
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", Told::Nameless),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Told::Nameless),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Told::Nameless),
            ("HELO me\r\n", Told::Other),
            ("SSH-2.0-OpenSSH_9.2\r\n", Told::Other),
            ("\0\0\0\x08\x04", Told::Other),
        ] {
            assert_eq!(told(head.as_bytes()), Some(expected), "{head}");
        }
    }

    #[test]
    fn tls_tells_its_server_name_in_however_many_pieces() {
        let hello = client_hello(Some("Api.Example.com"));
        for len in 1..hello.len() {
            assert_eq!(told(&hello[..len]), None, "{len} of {}", hello.len());
        }
        assert_eq!(told(&hello), name("api.example.com"));
        assert_eq!(told(&client_hello(None)), Some(Told::Nameless));
        assert_eq!(told(&[0x16, 3, 1, 0, 4, 9, 0, 0, 0]), Some(Told::Nameless), "no ClientHello");
    }
}
