//! SOCKS5 with a proxy (RFC 1928 and 1929).

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_socks::Error;
use tokio_socks::tcp::Socks5Stream;

use crate::egress::proxy::credentials::Filled;
use crate::egress::proxy::not_made::NotMade;
use crate::policy::ProxyFault;

/// Has the proxy connect to an address. What follows on `stream` is the server's.
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    to: SocketAddr,
    told: Option<&Filled>,
) -> Result<(), NotMade> {
    let connected = match told {
        Some(Filled { username, password }) => {
            Socks5Stream::connect_with_password_and_socket(stream, to, username, password).await
        }
        None => Socks5Stream::connect_with_socket(stream, to).await,
    };
    connected.map(drop).map_err(why)
}

fn why(error: Error) -> NotMade {
    match error {
        Error::ConnectionRefused => io::ErrorKind::ConnectionRefused.into(),
        Error::NetworkUnreachable => io::ErrorKind::NetworkUnreachable.into(),
        Error::TtlExpired => io::ErrorKind::TimedOut.into(),
        // What most say of whatever it was.
        Error::HostUnreachable | Error::GeneralSocksServerFailure => io::ErrorKind::HostUnreachable.into(),
        Error::ConnectionNotAllowedByRuleset => ProxyFault::Forbidden.into(),
        Error::NoAcceptableAuthMethods | Error::AuthorizationRequired | Error::PasswordAuthFailure(_) => {
            ProxyFault::Credentials.into()
        }
        _ => ProxyFault::Protocol.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What becomes of a connection whose proxy sends this, and then ends; and what it has sent by then.
    async fn answered(answers: &[u8], told: Option<&Filled>) -> (Result<(), NotMade>, Vec<u8>) {
        answered_of(SocketAddr::from(([93, 184, 216, 34], 443)), answers, told).await
    }

    async fn answered_of(to: SocketAddr, answers: &[u8], told: Option<&Filled>) -> (Result<(), NotMade>, Vec<u8>) {
        let (mut near, mut far) = tokio::io::duplex(4096);
        far.write_all(answers).await.expect("sent");
        far.shutdown().await.expect("ended");
        let made = connect(&mut near, to, told).await;
        drop(near);
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).await.expect("read");
        (made, sent)
    }

    #[tokio::test]
    async fn it_is_spoken_as_it_is_specified() {
        const REQUEST: &[u8] = b"\x05\x01\x00\x01\x5d\xb8\xd8\x22\x01\xbb";
        let (made, sent) = answered(b"\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x01", None).await;
        assert!(made.is_ok() && sent == [b"\x05\x01\x00", REQUEST].concat(), "{made:?} {sent:?}");
        let told = Filled { username: "ada".to_owned(), password: "key".to_owned() };
        let (made, sent) = answered(b"\x05\x02\x01\x00\x05\x00\x00\x03\x01a\x00\x01", Some(&told)).await;
        let expected = [b"\x05\x02\x00\x02\x01\x03ada\x03key", REQUEST].concat();
        assert!(made.is_ok() && sent == expected, "{made:?} {sent:?}");
        let to = "[2606:2800::34]:443".parse().expect("an address");
        let (made, sent) = answered_of(to, b"\x05\x00\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x01", None).await;
        let address = b"\x26\x06\x28\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x34";
        let expected = [b"\x05\x01\x00\x05\x01\x00\x04", &address[..], b"\x01\xbb"].concat();
        assert!(made.is_ok() && sent == expected, "{made:?} {sent:?}");
    }

    #[tokio::test]
    async fn each_answer_is_what_it_says() {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        let replies = [(1, HostUnreachable), (3, NetworkUnreachable), (4, HostUnreachable), (5, ConnectionRefused)];
        for (reply, kind) in replies.into_iter().chain([(6, TimedOut)]) {
            let (made, _) = answered(&[5, 0, 5, reply, 0, 1, 0, 0, 0, 0, 0, 0], None).await;
            assert!(matches!(&made, Err(NotMade::Server(error)) if error.kind() == kind), "{reply}: {made:?}");
        }
        let told = Filled { username: "ada".to_owned(), password: "key".to_owned() };
        for (answers, told, fault) in [
            (&b"\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00"[..], None, ProxyFault::Forbidden),
            (b"\x05\xff", None, ProxyFault::Credentials),
            (b"\x05\x02", None, ProxyFault::Credentials),
            (b"\x05\x02\x01\x01", Some(&told), ProxyFault::Credentials),
            (b"\x05\x00\x05\x09\x00\x01\x00\x00\x00\x00\x00\x00", None, ProxyFault::Protocol),
            (b"\x05\x07", None, ProxyFault::Protocol),
            (b"\x04\x00", None, ProxyFault::Protocol),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", None, ProxyFault::Protocol),
            (b"\x05", None, ProxyFault::Protocol),
            (b"", None, ProxyFault::Protocol),
        ] {
            let (made, _) = answered(answers, told).await;
            assert!(matches!(&made, Err(NotMade::Proxy(is)) if *is == fault), "{answers:?}: {made:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_sends_does_no_harm(mut answers in prop::collection::vec(any::<u8>(), 0..600), is_told: bool) {
            // Most of what begins otherwise is found out at once.
            answers.splice(..0, [5, if is_told { 2 } else { 0 }]);
            let told = Filled { username: "ada".to_owned(), password: "key".to_owned() };
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (_, sent) = runtime.block_on(answered(&answers, is_told.then_some(&told)));
            prop_assert!(sent.len() < 100);
        }
    }
}
