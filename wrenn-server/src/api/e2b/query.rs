//! The part of an address after `?`.

use std::ops::RangeInclusive;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use crate::api::e2b::answer::Refused;

/// Each name with its value, in their order.
#[derive(Debug)]
pub(super) struct Pairs(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Pairs {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let pairs = Query::from_request_parts(parts, state).await;
        let Query(pairs) = pairs.map_err(|rejection| Refused::bad_request(rejection.body_text()))?;
        Ok(Self(pairs))
    }
}

impl Pairs {
    /// The value of a name, if it is there and not empty.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(of, _)| of == name)?;
        Some(&**value).filter(|value| !value.is_empty())
    }

    /// What is listed under a name: at once, by commas, or in several pairs.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        let values = self.0.iter().filter(|(of, _)| of == name);
        values.flat_map(|(_, value)| value.split(',')).collect()
    }

    /// The value of a name, whatever it is.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(of, _)| of == name).map(|(_, value)| &**value)
    }

    pub(super) fn number(&self, name: &str, default: u32, range: RangeInclusive<u32>) -> Result<u32, Refused> {
        let Some(text) = self.value(name) else { return Ok(default) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => {
                let (least, most) = range.into_inner();
                Err(Refused::bad_request(format!("{name} is {text:?}: it is a number from {least} to {most}")))
            }
        }
    }

    /// A number from 0 on, such as a time.
    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, Refused> {
        let Some(text) = self.value(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number >= 0 => Ok(Some(number)),
            _ => Err(Refused::bad_request(format!("{name} is {text:?}: it is a whole number from 0 on"))),
        }
    }

    /// The page that is asked for of a list whose entries have names.
    pub(super) fn page(&self) -> Result<NamedPage<'_>, Refused> {
        let limit = self.number("limit", PAGE_MAX, 1..=PAGE_MAX)?;
        Ok(NamedPage { limit: usize::try_from(limit).unwrap_or(1), after: self.text("nextToken") })
    }

    /// The pairs within a value: `k=v&k2=v2`, whose parts the clients encode once more than it takes.
    pub(super) fn pairs(&self, name: &str) -> Vec<(String, String)> {
        let decoded = |text: &str| {
            let once = percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
            percent_decode_str(&once).decode_utf8_lossy().into_owned()
        };
        let pairs = self.text(name).unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
    }
}

/// A part of a list that is in the order of names.
#[derive(Debug)]
pub(super) struct NamedPage<'a> {
    limit: usize,
    /// The last name of the page before.
    after: Option<&'a str>,
}

impl NamedPage<'_> {
    /// What of a list is in the page, and the header that names the next one.
    pub(super) fn of<T>(&self, mut all: Vec<T>, name: impl Fn(&T) -> &str) -> (HeaderMap, Vec<T>) {
        all.retain(|entry| self.after.is_none_or(|after| name(entry) > after));
        all.sort_by(|one, other| name(one).cmp(name(other)));
        let mut headers = HeaderMap::new();
        if all.len() > self.limit {
            all.truncate(self.limit);
            if let Some(last) = all.last().and_then(|last| HeaderValue::from_str(name(last)).ok()) {
                headers.insert(HeaderName::from_static("x-next-token"), last);
            }
        }
        (headers, all)
    }
}

/// As many as a page has at most, and if nothing is asked for.
const PAGE_MAX: u32 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_pairs_come_as_the_clients_write_them() {
        let pairs = |name: &str, value: &str| Pairs(vec![(name.to_owned(), value.to_owned())]);
        assert_eq!(pairs("state", "running,paused").list("state"), ["running", "paused"]);
        let two = Pairs(vec![("state".into(), "running".into()), ("state".into(), "paused".into())]);
        assert_eq!(two.list("state"), ["running", "paused"]);
        let labels = pairs("metadata", "a%2520b=c%2526d&e=").pairs("metadata");
        assert_eq!(labels, [("a b".to_owned(), "c&d".to_owned()), ("e".to_owned(), String::new())]);
        for wrong in ["101", "0", "-1", "", "x"] {
            assert!(pairs("limit", wrong).number("limit", 100, 1..=100).is_err(), "{wrong:?}");
        }
        for wrong in ["-1", "", "1.5", "9223372036854775808"] {
            assert!(pairs("start", wrong).integer("start").is_err(), "{wrong:?}");
        }
        assert_eq!(pairs("x", "1").number("limit", 100, 1..=100).expect("the default"), 100);
    }

    #[test]
    fn pages_follow_each_other_by_name() {
        let all = || ["c", "a", "e", "b", "d"].map(str::to_owned).to_vec();
        let mut seen = Vec::new();
        let mut query = Pairs(vec![("limit".to_owned(), "2".to_owned())]);
        loop {
            let (headers, page) = query.page().expect("a page").of(all(), |name| name);
            seen.push(page.concat());
            let Some(next) = headers.get("x-next-token") else { break };
            query.0.retain(|(name, _)| name == "limit");
            query.0.push(("nextToken".to_owned(), next.to_str().expect("a name").to_owned()));
        }
        assert_eq!(seen, ["ab", "cd", "e"]);
    }
}
