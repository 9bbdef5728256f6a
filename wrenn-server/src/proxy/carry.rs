//! A request is carried to a port, and its answer back.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::copy_bidirectional;

use crate::proxy::answer::Unreached;
use crate::proxy::connector::Connector;
use crate::service::meters::{Direction, Meters};

/// Keeps connections for the next requests.
pub(super) type Carrier = Client<Connector, Body>;

pub(super) fn carrier(connector: Connector) -> Carrier {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_preserve_header_case(true)
        .build(connector)
}

/// Carries a request whose address is that of a port already.
///
/// # Errors
/// Why the port was not reached.
pub(super) async fn carry(
    carrier: &Carrier,
    mut request: Request<Body>,
    meters: &Meters,
) -> Result<Response<Body>, Unreached> {
    let upgrade = upgrade_of(request.headers());
    let client = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    *request.version_mut() = Version::HTTP_11;
    between_two_ends(request.headers_mut());
    if let Some(protocol) = upgrade {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, protocol);
    }
    let mut response = carrier.request(request).await.map_err(|error| unreached(&error))?.map(Body::new);
    // That of the guest's server is between it and here: the client's connection goes on after an answer of HTTP/1.0.
    *response.version_mut() = Version::HTTP_11;
    match client {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let server = hyper::upgrade::on(&mut response);
            let (to, from) = (meters.carried_bytes(Direction::In), meters.carried_bytes(Direction::Out));
            tokio::spawn(async move {
                if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                    // Whoever breaks it tells the other by that.
                    let copied = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
                    let (to_bytes, from_bytes) = copied.unwrap_or_default();
                    to.inc_by(to_bytes);
                    from.inc_by(from_bytes);
                }
            });
        }
        _ => between_two_ends(response.headers_mut()),
    }
    Ok(response)
}

/// The same request for another address.
pub(super) fn readdress(
    request: &mut Request<Body>,
    (scheme, authority): (&str, String),
    path: &str,
) -> Result<(), Unreached> {
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
    *request.uri_mut() = uri.map_err(|_| Unreached::NoRoute)?;
    Ok(())
}

/// Takes away what is said of a connection (RFC 9110, section 7.6.1), which is another one on each side.
fn between_two_ends(headers: &mut HeaderMap) {
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<HeaderName> =
        named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    let is_upgrade = connection.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| is_upgrade).cloned()
}

fn unreached(error: &Error) -> Unreached {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => match inner.downcast_ref::<wrenn_core::Error>() {
                Some(wrenn_core::Error::NotFound { .. }) => return Unreached::PortClosed,
                Some(wrenn_core::Error::InvalidState { .. }) => return Unreached::NoSandbox,
                _ => {}
            },
            None => {
                let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                if kind == Some(std::io::ErrorKind::NotConnected) {
                    return Unreached::NoSandbox;
                }
            }
        }
        source = cause.source();
    }
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Unreached::Silent(cause)
}

const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// Shorter than the servers of guests wait for the next request.
const IDLE_MAX: Duration = Duration::from_secs(4);
const IDLE_CONNECTIONS: usize = 8;
