//! The server that an intercepted connection is for, and whether a request is for that.

use http::request::Parts;
use http::{Method, StatusCode, header};

use crate::egress::intercept::refused::Refused;

/// The server that an intercepted connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::egress) struct Target {
    /// In lower case.
    pub(in crate::egress) name: String,
    pub(in crate::egress) port: u16,
    pub(in crate::egress) scheme: Scheme,
}

/// What HTTP goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::egress) enum Scheme {
    /// TLS.
    Https,
    Http,
}

impl Target {
    /// Refuses a request for another server than the connection's: it would be answered by this one, with secrets that
    /// are not meant for what it asks. And such requests whose answers would tell them.
    pub(super) fn check(&self, request: &Parts) -> Result<(), Refused> {
        if request.method == Method::CONNECT || request.method == Method::TRACE {
            let why = format!("{} is not carried where a rule puts something into requests", request.method);
            return Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, why));
        }
        let authority = request.uri.authority().map(|authority| authority.as_str());
        let mut hosts = request.headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
        let host = hosts.next();
        let is_told = authority.is_some() || host.is_some();
        if is_told && hosts.next().is_none() && authority.iter().chain(&host).all(|told| self.is_meant_by(told)) {
            return Ok(());
        }
        let why = format!("this connection is for {}, and the request is not", self.name);
        Err(Refused::new(StatusCode::MISDIRECTED_REQUEST, why))
    }

    /// Whether a Host is this server: its name, and its port or none.
    fn is_meant_by(&self, host: &str) -> bool {
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let is_port = port.is_none_or(|port| port.parse() == Ok(self.port));
        is_port && name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_request_for_another_server_is_refused() {
        let target = Target { name: "a.example".to_owned(), port: 8443, scheme: Scheme::Https };
        let status = |method: &str, uri: &str, hosts: &[&str]| {
            let request = Request::builder().method(method).uri(uri);
            let request = hosts.iter().fold(request, |request, host| request.header("host", *host));
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            target.check(&parts).map_err(|refused| refused.status.as_u16())
        };
        for host in ["a.example", "A.Example:8443", "a.example.", "a.example.:8443"] {
            assert_eq!(status("GET", "/a", &[host]), Ok(()), "{host}");
            assert_eq!(status("GET", &format!("https://{host}/a"), &[]), Ok(()), "{host}");
        }
        for host in
            ["b.example", "a.example:443", "a.example:", "me@a.example", "", "a.example:8443:8443", "x.a.example"]
        {
            assert_eq!(status("GET", "/a", &[host]), Err(421), "{host}");
        }
        assert_eq!(status("GET", "/a", &[]), Err(421));
        assert_eq!(status("GET", "/a", &["a.example", "a.example"]), Err(421));
        assert_eq!(status("GET", "https://b.example/a", &["a.example"]), Err(421));
        assert_eq!(status("GET", "https://a.example/a", &["b.example"]), Err(421));
        assert_eq!(status("TRACE", "/a", &["a.example"]), Err(405));
        assert_eq!(status("CONNECT", "a.example:8443", &["a.example"]), Err(405));
    }
}
