//! Which port of which sandbox a request is for.

use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use wrenn_core::SandboxId;

/// A port of a sandbox, which may be none that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// As it was named.
    pub(super) id: String,
    pub(super) port: u16,
    /// What the request's path has before that of the guest's server.
    pub(super) prefix_len: usize,
}

impl Target {
    pub(super) fn agent(id: &SandboxId) -> Self {
        Self { id: id.to_string(), port: wrenn_envd::AGENT_PORT, prefix_len: 0 }
    }
}

/// The target that a request names: by its host (`8000-ID.DOMAIN`), by E2B's headers, or by its path
/// (`/v1/sandboxes/ID/ports/8000/…`).
pub(super) fn named(parts: &Parts, domain: &str) -> Option<Target> {
    by_host(parts, domain).or_else(|| by_headers(&parts.headers)).or_else(|| by_path(parts.uri.path()))
}

fn by_host(parts: &Parts, domain: &str) -> Option<Target> {
    let of_header = || parts.headers.get(header::HOST)?.to_str().ok();
    let host = parts.uri.authority().map(|authority| authority.as_str()).or_else(of_header)?;
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    let label = name.strip_suffix(domain)?.strip_suffix('.')?;
    let (port, id) = label.split_once('-')?;
    Some(Target { id: id.to_owned(), port: port.parse().ok()?, prefix_len: 0 })
}

fn by_headers(headers: &HeaderMap) -> Option<Target> {
    let text = |name| headers.get(name)?.to_str().ok();
    let id = text("e2b-sandbox-id")?.to_owned();
    let port = text("e2b-sandbox-port").map_or(Some(wrenn_envd::AGENT_PORT), |port| port.parse().ok())?;
    Some(Target { id, port, prefix_len: 0 })
}

fn by_path(path: &str) -> Option<Target> {
    let rest = path.strip_prefix(PATH)?;
    let (id, rest) = rest.split_once("/ports/")?;
    let port = rest.split('/').next()?;
    let prefix_len = PATH.len() + id.len() + "/ports/".len() + port.len();
    Some(Target { id: id.to_owned(), port: port.parse().ok()?, prefix_len })
}

const PATH: &str = "/v1/sandboxes/";

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn of(uri: &str, headers: &[(&str, &str)]) -> Option<(String, u16, usize)> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        named(&parts, "wrenn.example").map(|target| (target.id, target.port, target.prefix_len))
    }

    #[test]
    fn a_port_is_named_by_host_headers_or_path() {
        let id = "sb00f00ba70000002a";
        let found = |prefix_len| Some((id.to_owned(), 8000, prefix_len));
        assert_eq!(of("/a", &[("host", &format!("8000-{id}.wrenn.example:443"))]), found(0));
        assert_eq!(of("/a", &[("host", &format!("8000-{id}.WRENN.example"))]), found(0));
        assert_eq!(of(&format!("https://8000-{id}.wrenn.example/a"), &[]), found(0), "as in HTTP/2");
        assert_eq!(of("/a", &[("host", "1.2.3.4"), ("e2b-sandbox-id", id), ("e2b-sandbox-port", "8000")]), found(0));
        assert_eq!(of("/a", &[("e2b-sandbox-id", id)]), Some((id.to_owned(), 49983, 0)));
        assert_eq!(of(&format!("/v1/sandboxes/{id}/ports/8000/a?b"), &[]), found(14 + 18 + 7 + 4));
        assert_eq!(of(&format!("/v1/sandboxes/{id}/ports/8000"), &[]), found(14 + 18 + 7 + 4));
    }

    #[test]
    fn what_names_no_port_is_the_servers_own() {
        for (uri, host) in [
            ("/sandboxes", "api.wrenn.example"),
            ("/", "wrenn.example"),
            ("/", "8000-sb1.other.example"),
            ("/", "99999-sb1.wrenn.example"),
            ("/v1/sandboxes/sb1/exec", "127.0.0.1:8080"),
            ("/v1/sandboxes/sb1/ports/x/", "127.0.0.1:8080"),
        ] {
            assert_eq!(of(uri, &[("host", host)]), None, "{uri} {host}");
        }
    }
}
