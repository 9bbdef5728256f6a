//! The routes of a guest's agent that clients may use. The others are the server's alone.

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};

use crate::proxy::answer::Unreached;
use crate::service::sandboxes::reach::Reached;

/// What a request to an agent needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing.
    Nothing,
    /// The sandbox's token, or a signature.
    TokenOrSignature,
    /// The sandbox's token.
    Token,
}

/// What a request needs; `None` if it is none that clients may send.
pub(super) fn need(parts: &Parts) -> Option<Need> {
    let path = parts.uri.path();
    let is_call = |service: &str| {
        let method = path.strip_prefix(service)?.strip_prefix('/')?;
        (!method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic())).then_some(())
    };
    match (&parts.method, path) {
        (&Method::GET, "/health") => Some(Need::Nothing),
        (&Method::GET | &Method::POST | &Method::HEAD, "/files") => Some(Need::TokenOrSignature),
        (&Method::GET, "/metrics" | "/envs") | (&Method::POST, "/files/compose") => Some(Need::Token),
        (&Method::POST | &Method::GET, _) if SERVICES.into_iter().any(|service| is_call(service).is_some()) => {
            Some(Need::Token)
        }
        _ => None,
    }
}

/// Puts the token into a request that the guest's agent knows, in place of the client's.
pub(super) fn credentials(headers: &mut HeaderMap, reached: &Reached) -> Result<(), Unreached> {
    headers.remove(wrenn_envd::ACCESS_TOKEN_HEADER);
    headers.insert(header::HOST, HeaderValue::from_static("agent"));
    if let Some(token) = reached.sandbox.agent_token() {
        let token = HeaderValue::from_str(&token).map_err(|_| Unreached::NoRoute)?;
        headers.insert(wrenn_envd::ACCESS_TOKEN_HEADER, token);
    }
    Ok(())
}

const SERVICES: [&str; 2] = ["/process.Process", "/filesystem.Filesystem"];

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn of(method: &str, uri: &str) -> Option<Need> {
        need(&Request::builder().method(method).uri(uri).body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn what_the_server_alone_may_ask_is_no_route() {
        for path in [
            "/init",
            "/freeze",
            "/unfreeze",
            "/fsfreeze",
            "/fsthaw",
            "/upgrade",
            "/collapse",
            "/",
            "//init",
            "/init/",
            "/files/../init",
            "/process.Process/../init",
            "/process.Process/",
            "/process.Process/%2e%2e/init",
            "/events",
        ] {
            for method in ["GET", "POST", "PUT"] {
                assert_eq!(of(method, path), None, "{method} {path}");
            }
        }
        assert_eq!(of("POST", "/process.Process/Start"), Some(Need::Token));
        assert_eq!(of("POST", "/filesystem.Filesystem/Stat"), Some(Need::Token));
        assert_eq!(of("GET", "/files?path=/a"), Some(Need::TokenOrSignature));
        assert_eq!(of("GET", "/health"), Some(Need::Nothing));
        assert_eq!(of("DELETE", "/files"), None);
    }
}
