//! What is put into a guest's requests on their way out.

use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};

use crate::policy::entry::{PolicyEntry, Protocol};
use crate::policy::error::PolicyError;
use crate::policy::value::Value;

/// What is put into a guest's requests to a host on their way out, so that the guest uses an API whose key it does not have.
///
/// A header is set, in place of one that the guest has sent; or a placeholder, which the guest knows instead of the secret, is
/// replaced in the values of headers and in the query. In both, `${secret.NAME}` stands for what a
/// [`SecretSource`](crate::SecretSource) has under that name when the request is made. The rest of a value is kept with the
/// policy, in records as well, so a key is not to be written into it.
///
/// Of the rules for a name, those of its exact name act, else those of the longest `*.name` that it is below: all of them
/// whose methods and path fit, in their order. A rule lets nothing through that the policy does not.
///
/// A server that answers with what it was asked tells the guest as well: a rule's methods and path keep a key from such
/// places.
///
/// ```
/// use wrenn_net::{NetworkPolicy, Rule};
///
/// # fn main() -> Result<(), wrenn_net::PolicyError> {
/// let key = Rule::of("api.example.com:443")?
///     .methods(["GET", "POST"])?
///     .path("/v1")?
///     .set_header("authorization", "Bearer ${secret.EXAMPLE_KEY}")?;
/// let policy = NetworkPolicy::closed().allow(["api.example.com:443"])?.rule(key)?;
/// # assert_eq!(policy.rules().len(), 1);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    host: PolicyEntry,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    methods: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, Value)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    placeholders: Vec<(String, Value)>,
}

impl Rule {
    /// A rule for a host: `NAME[:PORT[-PORT]]` or `*.NAME[:PORT[-PORT]]`, which is every name below that one. Default of the
    /// port: 443 and 80. Over the latter a key goes in the clear.
    ///
    /// # Errors
    /// It is not written like that.
    pub fn of(host: &str) -> Result<Self, PolicyError> {
        let entry: PolicyEntry = host.parse()?;
        let none = Vec::new;
        let rule = Self { host: entry, methods: none(), path: None, headers: Vec::new(), placeholders: Vec::new() };
        rule.checked()
    }

    /// The methods of the requests that it is for. Default: all.
    ///
    /// # Errors
    /// One is no method of HTTP, or one that no rule is for; or there are more than 16.
    pub fn methods(mut self, methods: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, PolicyError> {
        self.methods.extend(methods.into_iter().map(|method| method.as_ref().to_owned()));
        self.checked()
    }

    /// What the paths of the requests begin with that it is for: `/v1` is for `/v1`, `/v1/` and all below. Default: `/`.
    ///
    /// A path that a server may read as another one, such as with `..`, is for no rule that has this.
    ///
    /// # Errors
    /// It does not begin with a slash, has a query, or is longer than 1024 bytes.
    pub fn path(mut self, path: &str) -> Result<Self, PolicyError> {
        self.path = Some(path.to_owned());
        self.checked()
    }

    /// Sets a header to a value, in which `${secret.NAME}` stands for a secret.
    ///
    /// # Errors
    /// It is no name of a header, or one of those that carry the request itself, such as `host`. The value is not written
    /// like one, or longer than 4096 bytes; or there are more than 32 headers.
    pub fn set_header(mut self, name: &str, value: &str) -> Result<Self, PolicyError> {
        let value = value.parse().map_err(|why| self.wrong(name, why))?;
        self.headers.push((name.to_ascii_lowercase(), value));
        self.checked()
    }

    /// Replaces a placeholder that the guest sends, in the values of headers and in the query.
    ///
    /// # Errors
    /// The placeholder is not of 8 to 128 letters, digits, `_`, `-`, `.` and `~`, which stand in a query as they are. The
    /// value is not written like one, or longer than 4096 bytes; or there are more than 32 placeholders.
    pub fn replace(mut self, placeholder: &str, value: &str) -> Result<Self, PolicyError> {
        let value = value.parse().map_err(|why| self.wrong(placeholder, why))?;
        self.placeholders.push((placeholder.to_owned(), value));
        self.checked()
    }

    /// Whether it is for requests to this port of its host.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        match self.host.has_any_port() {
            true => DEFAULT_PORTS.contains(&port),
            false => self.host.has_port(Protocol::Tcp, port),
        }
    }

    /// How closely its host is that name, which is in lower case; `None` where it is not.
    pub(crate) fn closeness(&self, name: &str) -> Option<usize> {
        self.host.closeness(name)
    }

    /// Whether it is for such a request of its host.
    pub(crate) fn is_for(&self, method: &Method, path: &str) -> bool {
        let is_method = self.methods.is_empty() || self.methods.iter().any(|own| own == method.as_str());
        is_method && self.path.as_ref().is_none_or(|own| is_below(path, own))
    }

    /// The headers that it sets.
    pub(crate) fn headers(&self) -> &[(String, Value)] {
        &self.headers
    }

    /// What it replaces.
    pub(crate) fn placeholders(&self) -> &[(String, Value)] {
        &self.placeholders
    }

    /// Whether it can be in a policy.
    pub(super) fn check(&self) -> Result<(), PolicyError> {
        if self.headers.is_empty() && self.placeholders.is_empty() {
            return Err(self.wrong("", "it neither sets a header nor replaces a placeholder"));
        }
        self.clone().checked().map(drop)
    }

    fn checked(self) -> Result<Self, PolicyError> {
        let wrong = |text: &str, why| Err(self.wrong(text, why));
        if !self.host.is_name() || !self.host.has_protocol(Protocol::Tcp) {
            return wrong("", "a rule is for a name, over TCP: `api.example.com` or `*.example.com`, and a port");
        }
        if let Some(method) = self.methods.iter().find(|method| !is_method(method)) {
            return wrong(method, "it is no method of HTTP that requests with secrets are made by");
        }
        if let Some(path) = self.path.as_ref().filter(|path| !is_path(path)) {
            return wrong(path, "a path begins with a slash, and has 1024 bytes at most and no query");
        }
        if let Some((name, _)) = self.headers.iter().find(|(name, _)| !is_header(name)) {
            return wrong(name, "it is no header that can be set: those that carry the request are not");
        }
        if let Some((text, _)) = self.placeholders.iter().find(|(text, _)| !is_placeholder(text)) {
            return wrong(text, "a placeholder has 8 to 128 letters, digits, `_`, `-`, `.` and `~`");
        }
        if self.methods.len() > METHODS_MAX || self.headers.len() > VALUES_MAX || self.placeholders.len() > VALUES_MAX {
            return wrong("", "a rule has at most 16 methods, 32 headers and 32 placeholders");
        }
        Ok(self)
    }

    fn wrong(&self, text: &str, why: &'static str) -> PolicyError {
        PolicyError::Rule { host: self.host.to_string(), text: text.to_owned(), why }
    }
}

/// Whether a header is about how a request is carried, or by whom it is answered, and so is left as it is.
pub(crate) fn carries(name: &str) -> bool {
    CARRYING.contains(&name)
}

/// Whether a path is the other, or below it, whoever reads it.
fn is_below(path: &str, above: &str) -> bool {
    let above = above.strip_suffix('/').unwrap_or(above);
    let is_below = path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    is_below && is_plain(path)
}

/// Whether a path has nothing that some servers resolve and others do not: a step up, or a hidden slash.
fn is_plain(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    let is_hidden = ["%2f", "%5c", "%25", "\\"].iter().any(|hidden| path.contains(hidden));
    let path = path.replace("%2e", ".").replace("%3b", ";");
    let is_step = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    !is_hidden && !path.split('/').any(is_step)
}

fn is_method(method: &str) -> bool {
    // What TRACE is asked comes back to the guest, and what CONNECT carries has no headers.
    Method::from_bytes(method.as_bytes()).is_ok_and(|method| method != Method::TRACE && method != Method::CONNECT)
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= PATH_BYTES_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte))
        && is_plain(path)
}

fn is_header(name: &str) -> bool {
    name.len() <= HEADER_BYTES_MAX && HeaderName::from_bytes(name.as_bytes()).is_ok() && !carries(name)
}

fn is_placeholder(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.~".contains(&byte);
    PLACEHOLDER_BYTES.contains(&text.len()) && text.bytes().all(is_letter)
}

const DEFAULT_PORTS: [u16; 2] = [443, 80];
const METHODS_MAX: usize = 16;
const VALUES_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 1024;
const HEADER_BYTES_MAX: usize = 256;
/// Shorter ones would be found where nobody meant them.
const PLACEHOLDER_BYTES: std::ops::RangeInclusive<usize> = 8..=128;
/// RFC 9110, sections 6 to 10.
const CARRYING: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: &str) -> Rule {
        Rule::of(host).and_then(|rule| rule.set_header("x-key", "${secret.KEY}")).expect("a rule")
    }

    #[test]
    fn a_rule_is_for_its_methods_and_for_what_is_below_its_path() {
        let all = rule("api.example.com");
        assert!(all.is_for(&Method::DELETE, "/any/../thing"));
        let some = all.methods(["POST", "GET"]).and_then(|rule| rule.path("/v1/")).expect("a rule");
        for (method, path, is) in [
            ("POST", "/v1", true),
            ("GET", "/v1/", true),
            ("GET", "/v1/a/b.c/..d", true),
            ("PUT", "/v1/a", false),
            ("GET", "/", false),
            ("GET", "/v10", false),
            ("GET", "/V1/a", false),
            ("GET", "/v1/../admin", false),
            ("GET", "/v1/%2E%2e/admin", false),
            ("GET", "/v1/..;a=b/admin", false),
            ("GET", "/v1/..%2fadmin", false),
            ("GET", "/v1/%252e%252e/admin", false),
            ("GET", "/v1/..\\admin", false),
        ] {
            assert_eq!(some.is_for(&method.parse().expect("a method"), path), is, "{method} {path}");
        }
    }

    #[test]
    fn what_cannot_be_a_rule_is_refused_with_what_is_wrong() {
        let of = |host: &str| Rule::of(host).map(drop);
        let with = |make: &dyn Fn(Rule) -> Result<Rule, PolicyError>| make(rule("a.example")).map(drop);
        for (refused, part) in [
            (of("93.184.216.34"), "over TCP"),
            (of("*"), "over TCP"),
            (of("udp://a.example"), "over TCP"),
            (of("a.example:0"), "a port"),
            (with(&|rule| rule.methods(["G ET"])), "`G ET`"),
            (with(&|rule| rule.methods(["TRACE"])), "`TRACE`"),
            (with(&|rule| rule.methods(["A"; 17])), "16 methods"),
            (with(&|rule| rule.path("v1")), "`v1`"),
            (with(&|rule| rule.path("/v1?a")), "`/v1?a`"),
            (with(&|rule| rule.path("/v1/../a")), "`/v1/../a`"),
            (with(&|rule| rule.set_header("Host", "a")), "`host`"),
            (with(&|rule| rule.set_header("a b", "a")), "`a b`"),
            (with(&|rule| rule.set_header("a", "${secret}")), "${secret.NAME}"),
            (with(&|rule| rule.replace("short", "a")), "`short`"),
            (with(&|rule| rule.replace("has/a-slash", "a")), "`has/a-slash`"),
            (Rule::of("a.example").and_then(|rule| rule.check()), "neither"),
        ] {
            let error = refused.expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        let many = (0..33).try_fold(rule("a.example"), |rule, _| rule.set_header("a", "a"));
        assert!(many.is_err());
    }

    #[test]
    fn without_a_port_it_is_for_the_ports_of_https_and_http() {
        let ports = |rule: &Rule| [80, 443, 8443].map(|port| rule.has_port(port));
        assert_eq!(ports(&rule("a.example")), [true, true, false]);
        assert_eq!(ports(&rule("a.example:443-8443")), [false, true, true]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let rule = rule("*.a.example:443").replace("placeholder", "a${secret.B}").expect("a rule");
        let text = serde_json::to_string(&rule).expect("JSON");
        assert_eq!(serde_json::from_str::<Rule>(&text).expect("a rule"), rule, "{text}");
        assert_eq!(
            text,
            r#"{"host":"*.a.example:443","headers":[["x-key","${secret.KEY}"]],"placeholders":[["placeholder","a${secret.B}"]]}"#
        );
    }
}
