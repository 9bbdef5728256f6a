//! The part of an address after `?`.

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
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
        values.flat_map(|(_, value)| value.split(',')).filter(|value| !value.is_empty()).collect()
    }

    pub(super) fn number(&self, name: &str, default: u32, max: u32) -> Result<u32, Refused> {
        let Some(text) = self.text(name) else { return Ok(default) };
        match text.parse() {
            Ok(number) if number <= max => Ok(number),
            _ => Err(Refused::bad_request(format!("{name} is {text:?}: it is a number up to {max}"))),
        }
    }

    pub(super) fn integer(&self, name: &str) -> Result<Option<i64>, Refused> {
        let Some(text) = self.text(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| Refused::bad_request(format!("{name} is {text:?}: it is a whole number")))
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
        assert!(pairs("limit", "101").number("limit", 100, 100).is_err());
        assert_eq!(pairs("x", "1").number("limit", 100, 100).expect("the default"), 100);
    }
}
