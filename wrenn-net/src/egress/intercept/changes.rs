//! What rules change of a request: decided before the secrets are known, and made with them.

use std::collections::{BTreeMap, BTreeSet};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, StatusCode, Uri};

use crate::egress::intercept::refused::Refused;
use crate::egress::secret::Secret;
use crate::policy::{Rule, Value, carries};

/// What is to be changed of a request.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Those that are in it.
    placeholders: Vec<(String, Value)>,
    headers: Vec<(String, Value)>,
}

impl Changes {
    /// What the rules of its server want of a request.
    pub(super) fn of<'a>(rules: impl Iterator<Item = &'a Rule>, request: &Parts) -> Self {
        let mut changes = Self::default();
        for rule in rules.filter(|rule| rule.is_for(&request.method, request.uri.path())) {
            let is_there = |(placeholder, _): &&(String, Value)| has(request, placeholder);
            changes.placeholders.extend(rule.placeholders().iter().filter(is_there).cloned());
            changes.headers.extend(rule.headers().iter().cloned());
        }
        changes
    }

    /// The names of the secrets that it takes.
    pub(super) fn secrets(&self) -> BTreeSet<&str> {
        self.placeholders.iter().chain(&self.headers).flat_map(|(_, value)| value.secrets()).collect()
    }

    /// Makes the changes. What the guest sent is replaced first, so that nothing is looked for in a secret.
    pub(super) fn make(&self, secrets: &BTreeMap<&str, Secret>, request: &mut Parts) -> Result<(), Refused> {
        for (placeholder, value) in &self.placeholders {
            let value = filled(value, secrets)?;
            replace_in_headers(request, placeholder, &value)?;
            replace_in_query(request, placeholder, &value)?;
        }
        for (name, value) in &self.headers {
            let value = header_value(filled(value, secrets)?.into_bytes())?;
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit("the name of a header"))?;
            request.headers.insert(name, value);
        }
        Ok(())
    }
}

fn filled(value: &Value, secrets: &BTreeMap<&str, Secret>) -> Result<String, Refused> {
    value.filled(|name| secrets.get(name).map(Secret::expose)).map_err(missing)
}

/// Tells that a secret is not there.
pub(super) fn missing(name: &str) -> Refused {
    Refused::new(StatusCode::BAD_GATEWAY, format!("a rule needs the secret `{name}`, which the host does not have"))
}

fn unfit(what: &str) -> Refused {
    Refused::new(StatusCode::BAD_GATEWAY, format!("what a rule makes of this request is not fit for {what}"))
}

/// A value that is shown by no `Debug`, and that no table of HTTP/2 keeps.
fn header_value(bytes: Vec<u8>) -> Result<HeaderValue, Refused> {
    let mut value = HeaderValue::try_from(bytes).map_err(|_| unfit("the value of a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn has(request: &Parts, placeholder: &str) -> bool {
    let in_header = |(name, value): (&HeaderName, &HeaderValue)| {
        !carries(name.as_str()) && find(value.as_bytes(), placeholder.as_bytes()).is_some()
    };
    request.headers.iter().any(in_header) || request.uri.query().is_some_and(|query| query.contains(placeholder))
}

fn replace_in_headers(request: &mut Parts, placeholder: &str, value: &str) -> Result<(), Refused> {
    for (name, own) in &mut request.headers {
        if carries(name.as_str()) || find(own.as_bytes(), placeholder.as_bytes()).is_none() {
            continue;
        }
        let (mut rest, mut bytes) = (own.as_bytes(), Vec::new());
        while let Some(at) = find(rest, placeholder.as_bytes()) {
            bytes.extend_from_slice(&rest[..at]);
            bytes.extend_from_slice(value.as_bytes());
            rest = &rest[at + placeholder.len()..];
        }
        bytes.extend_from_slice(rest);
        *own = header_value(bytes)?;
    }
    Ok(())
}

fn replace_in_query(request: &mut Parts, placeholder: &str, value: &str) -> Result<(), Refused> {
    let Some(query) = request.uri.query().filter(|query| query.contains(placeholder)) else { return Ok(()) };
    let query = query.replace(placeholder, &percent_encoded(value));
    let path = PathAndQuery::try_from(format!("{}?{query}", request.uri.path())).map_err(|_| unfit("a query"))?;
    let mut parts = std::mem::take(&mut request.uri).into_parts();
    parts.path_and_query = Some(path);
    request.uri = Uri::from_parts(parts).map_err(|_| unfit("a query"))?;
    Ok(())
}

/// With all but what stands for itself (RFC 3986, section 2.3).
fn percent_encoded(value: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    value.bytes().map(encoded).collect()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len().max(1)).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let request = headers.iter().fold(Request::builder().uri(uri), |all, (name, value)| all.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn secrets() -> BTreeMap<&'static str, Secret> {
        BTreeMap::from([("KEY", Secret::new("s/1 ü")), ("SPLIT", Secret::new("a\r\nb: c"))])
    }

    fn changed(rule: &Rule, uri: &str, headers: &[(&str, &str)]) -> Result<Parts, Refused> {
        let mut request = parts(uri, headers);
        Changes::of([rule].into_iter(), &request).make(&secrets(), &mut request)?;
        Ok(request)
    }

    fn rule(make: impl FnOnce(Rule) -> Result<Rule, crate::PolicyError>) -> Rule {
        Rule::of("a.example").and_then(make).expect("a rule")
    }

    #[test]
    fn a_header_is_added_or_replaces_all_of_the_guests() {
        let rule = rule(|rule| rule.set_header("X-Key", "Bearer ${secret.KEY}"));
        for sent in [&[][..], &[("x-key", "mine"), ("X-KEY", "and mine")]] {
            let request = changed(&rule, "/", sent).expect("changed");
            let values: Vec<_> = request.headers.get_all("x-key").iter().map(HeaderValue::as_bytes).collect();
            assert_eq!(values, ["Bearer s/1 ü".as_bytes()]);
            assert!(!format!("{request:?}").contains("s/1"), "shown");
        }
    }

    #[test]
    fn a_placeholder_is_replaced_in_values_and_in_the_query_wherever_it_stands() {
        let rule = rule(|rule| rule.replace("place-holder", "${secret.KEY}"));
        let headers = [("a", "place-holder"), ("b", "x place-holder,place-holder!"), ("host", "place-holder")];
        let request = changed(&rule, "/place-holder?a=place-holder&b=1place-holder", &headers).expect("changed");
        let value = |name: &str| String::from_utf8_lossy(request.headers[name].as_bytes()).into_owned();
        assert_eq!(["a", "b", "host"].map(value), ["s/1 ü", "x s/1 ü,s/1 ü!", "place-holder"]);
        assert_eq!(request.uri, "/place-holder?a=s%2F1%20%C3%BC&b=1s%2F1%20%C3%BC");
        let absolute = changed(&rule, "https://a.example:1/b?place-holder", &[]).expect("changed");
        assert_eq!(absolute.uri, "https://a.example:1/b?s%2F1%20%C3%BC");
    }

    #[test]
    fn secrets_are_asked_for_where_they_are_needed_alone() {
        let rule = rule(|rule| rule.replace("place-holder", "${secret.NONE}").and_then(|rule| rule.methods(["GET"])));
        let changes = |request: &Parts| Changes::of([&rule].into_iter(), request).secrets().len();
        let mut request = parts("/?a=place-holder", &[]);
        assert_eq!((changes(&parts("/", &[])), changes(&request)), (0, 1));
        let refused = changed(&rule, "/?a=place-holder", &[]).expect_err("missing");
        assert!(refused.status == 502 && refused.why.contains("`NONE`"), "{refused:?}");
        request.method = http::Method::POST;
        assert_eq!(changes(&request), 0);
    }

    #[test]
    fn a_secret_that_would_be_two_headers_is_none() {
        let rule = rule(|rule| rule.set_header("a", "${secret.SPLIT}"));
        let refused = changed(&rule, "/", &[]).expect_err("unfit");
        assert!(refused.status == 502 && !refused.why.contains("b: c"), "{refused:?}");
    }
}
