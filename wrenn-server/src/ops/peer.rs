//! Who is at the other end of a connection.

use std::net::SocketAddr;

use axum::http::request::Parts;

/// The address at the other end of a request's connection, as an extension of the request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Whether a request comes from a program of this machine. One that a proxy of this machine passes on may be anybody's.
pub(super) fn is_of_this_machine(parts: &Parts) -> bool {
    let is_loopback = parts.extensions.get::<Peer>().is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
    is_loopback && !PASSED_ON.into_iter().any(|name| parts.headers.contains_key(name))
}

/// What proxies add to a request.
const PASSED_ON: [&str; 5] = ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"];

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    #[test]
    fn what_a_proxy_passes_on_is_not_of_this_machine() {
        let is_own = |address: &str, header: Option<&str>| {
            let mut request = Request::builder().extension(Peer(address.parse().expect("an address")));
            if let Some(name) = header {
                request = request.header(name, "10.0.0.1");
            }
            is_of_this_machine(&request.body(()).expect("a request").into_parts().0)
        };
        assert!(
            is_own("127.0.0.1:9", None) && is_own("[::1]:9", None) && is_own("[::ffff:127.0.0.1]:9", Some("accept"))
        );
        assert!(!is_own("10.0.0.1:9", None) && !is_own("[2001:db8::1]:9", None));
        for name in PASSED_ON {
            assert!(!is_own("127.0.0.1:9", Some(name)), "{name}");
        }
        assert!(!is_of_this_machine(&Request::new(()).into_parts().0), "nobody said where it comes from");
    }
}
