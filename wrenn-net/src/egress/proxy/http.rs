//! HTTP's CONNECT with a proxy (RFC 9110, section 9.3.6).

use std::io;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::egress::proxy::credentials::Filled;
use crate::egress::proxy::not_made::NotMade;
use crate::policy::ProxyFault;

/// Has the proxy connect to an address. What follows on `stream` is the server's.
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    to: SocketAddr,
    told: Option<&Filled>,
) -> Result<(), NotMade> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(Filled { username, password }) = told {
        // RFC 7617: the username ends at the first colon.
        if username.contains(':') {
            return Err(ProxyFault::Secret.into());
        }
        let credentials = STANDARD.encode(format!("{username}:{password}"));
        request += &format!("Proxy-Authorization: Basic {credentials}\r\n");
    }
    request += "\r\n";
    let answered = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        status(stream).await
    };
    // What goes wrong here does so with the proxy.
    let status = answered.await.map_err(|_| ProxyFault::Protocol)?;
    if status.is_success() { Ok(()) } else { Err(why(status)) }
}

/// The status of the answer. No byte that follows its head is read.
async fn status(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<StatusCode> {
    let mut head = Vec::new();
    for _ in 0..HEADS_BYTES_MAX {
        head.push(stream.read_u8().await?);
        if !head.ends_with(b"\n\r\n") && !head.ends_with(b"\n\n") {
            continue;
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&head).map_err(io::Error::other)?;
        let status = response.code.filter(|_| parsed.is_complete()).map(StatusCode::from_u16);
        let status = status.ok_or(io::ErrorKind::InvalidData)?.map_err(io::Error::other)?;
        if !status.is_informational() {
            return Ok(status);
        }
        // Another one follows.
        head.clear();
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// What a proxy means that does not connect. There is no status of its own for each of what a connection fails of.
fn why(status: StatusCode) -> NotMade {
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => ProxyFault::Credentials.into(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
            ProxyFault::Forbidden.into()
        }
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => io::ErrorKind::ConnectionRefused.into(),
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => io::ErrorKind::TimedOut.into(),
        StatusCode::NOT_IMPLEMENTED => ProxyFault::Protocol.into(),
        status if status.is_server_error() || status == StatusCode::NOT_FOUND => io::ErrorKind::HostUnreachable.into(),
        _ => ProxyFault::Protocol.into(),
    }
}

/// With what comes before the answer.
const HEADS_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of a connection whose proxy sends this, and then ends; what it has sent; and what it has not read.
    async fn answered(answers: &[u8], told: Option<&Filled>) -> (Result<(), NotMade>, String, Vec<u8>) {
        answered_of(SocketAddr::from(([93, 184, 216, 34], 443)), answers, told).await
    }

    async fn answered_of(
        to: SocketAddr,
        answers: &[u8],
        told: Option<&Filled>,
    ) -> (Result<(), NotMade>, String, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        far.write_all(answers).await.expect("sent");
        far.shutdown().await.expect("ended");
        let made = connect(&mut near, to, told).await;
        let (mut rest, mut sent) = (Vec::new(), String::new());
        near.read_to_end(&mut rest).await.expect("read");
        drop(near);
        far.read_to_string(&mut sent).await.expect("read");
        (made, sent, rest)
    }

    #[tokio::test]
    async fn it_is_asked_for_an_address_and_what_follows_its_answer_is_the_servers() {
        let answer =
            b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.0 200 Yes\r\nContent-Length: 3\r\n\r\nSSH-2.0\r\n";
        let (made, sent, rest) = answered(answer, None).await;
        assert!(made.is_ok() && rest == b"SSH-2.0\r\n", "{made:?} {rest:?}");
        assert_eq!(sent, "CONNECT 93.184.216.34:443 HTTP/1.1\r\nHost: 93.184.216.34:443\r\n\r\n");
        let told = Filled { username: "ada".to_owned(), password: "a:\r\nb".to_owned() };
        let (_, sent, _) = answered(answer, Some(&told)).await;
        // As Python's base64 has it.
        assert!(sent.ends_with("443\r\nProxy-Authorization: Basic YWRhOmE6DQpi\r\n\r\n"), "{sent}");
        let two = Filled { username: "a:b".to_owned(), ..told };
        let (made, sent, _) = answered(answer, Some(&two)).await;
        assert!(matches!(made, Err(NotMade::Proxy(ProxyFault::Secret))) && sent.is_empty(), "{made:?} {sent}");
    }

    #[tokio::test]
    async fn an_ipv6_address_is_in_brackets() {
        let to = "[2606:2800::34]:443".parse().expect("an address");
        let (made, sent, _) = answered_of(to, b"HTTP/1.1 200 OK\r\n\r\n", None).await;
        assert!(made.is_ok(), "{made:?}");
        assert_eq!(sent, "CONNECT [2606:2800::34]:443 HTTP/1.1\r\nHost: [2606:2800::34]:443\r\n\r\n");
    }

    #[tokio::test]
    async fn each_answer_is_what_it_says() {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, TimedOut};
        for (status, kind) in
            [(502, ConnectionRefused), (503, ConnectionRefused), (504, TimedOut), (500, HostUnreachable)]
        {
            let (made, ..) = answered(format!("HTTP/1.1 {status} No\r\n\r\n").as_bytes(), None).await;
            assert!(matches!(&made, Err(NotMade::Server(error)) if error.kind() == kind), "{status}: {made:?}");
        }
        let endless = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"a: b\r\n".repeat(100_000)].concat();
        let many = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"a: b\r\n".repeat(200), b"\r\n".to_vec()].concat();
        let hints = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(3);
        for (answer, fault) in [
            (&b"HTTP/1.1 407 Who?\r\n\r\n"[..], ProxyFault::Credentials),
            (b"HTTP/1.1 403 No\r\n\r\n", ProxyFault::Forbidden),
            (b"HTTP/1.1 405 What?\r\n\r\n", ProxyFault::Protocol),
            (b"HTTP/1.1 302 There\r\n\r\n", ProxyFault::Protocol),
            (b"HTTP/1.1 200 OK\r\n", ProxyFault::Protocol),
            (b"SSH-2.0-a\r\n\r\n", ProxyFault::Protocol),
            (b"\x05\x00", ProxyFault::Protocol),
            (b"", ProxyFault::Protocol),
            (&endless, ProxyFault::Protocol),
            (&many, ProxyFault::Protocol),
            (&hints, ProxyFault::Protocol),
        ] {
            let (made, ..) = answered(answer, None).await;
            let begin = String::from_utf8_lossy(&answer[..answer.len().min(30)]);
            assert!(matches!(&made, Err(NotMade::Proxy(is)) if *is == fault), "{begin}: {made:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_sends_does_no_harm(answer in "(HTTP/1.[01] [1-5][0-9]{2} [a-z]{0,3}\r?\n)?([a-z:]{0,9}\r?\n){0,5}[a-z]{0,9}") {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (made, _, rest) = runtime.block_on(answered(answer.as_bytes(), None));
            let is_read = &answer.as_bytes()[..answer.len() - rest.len()];
            prop_assert!(made.is_err() || is_read.ends_with(b"\n\r\n") || is_read.ends_with(b"\n\n"));
            prop_assert!(made.is_err() || answer.starts_with("HTTP/1."));
        }
    }
}
