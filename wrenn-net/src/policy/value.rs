//! A text with secrets in it, by their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text of a header's value, in which `${secret.NAME}` stands for a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Value(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// Its name.
    Secret(String),
}

impl Value {
    /// The names of the secrets in it.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Secret(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The text with each secret as `value_of` gives it. The error is the name of a secret that it does not.
    pub(crate) fn filled<'a>(&'a self, value_of: impl Fn(&str) -> Option<&'a str>) -> Result<String, &'a str> {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => Ok(text.as_str()),
            Piece::Secret(name) => value_of(name).ok_or(name.as_str()),
        });
        pieces.collect()
    }
}

impl FromStr for Value {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() || text.len() > TEXT_BYTES_MAX {
            return Err("a value has 1 to 4096 bytes");
        }
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("a value has no control characters");
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (inside, after) = after.split_once('}').ok_or("`${` has no `}` after it")?;
            let name = inside.strip_prefix(KIND).filter(|name| is_secret_name(name));
            let name = name.ok_or(
                "a secret is written `${secret.NAME}`, with a name of up to 128 letters, digits, `_`, `-` and `.`",
            )?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Secret(name.to_owned()));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }
}

fn is_secret_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_letter)
}

impl TryFrom<String> for Value {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

impl From<Value> for String {
    fn from(value: Value) -> Self {
        value.to_string()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Secret(name) => write!(f, "{OPEN}{KIND}{name}}}"),
        })
    }
}

const OPEN: &str = "${";
const KIND: &str = "secret.";
const TEXT_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_filled_or_names_what_is_missing() {
        let value: Value = "Basic ${secret.USER}:${secret.api.KEY-1}$ {}".parse().expect("a value");
        assert_eq!(value.secrets().collect::<Vec<_>>(), ["USER", "api.KEY-1"]);
        assert_eq!(value.filled(|name| (name == "USER").then_some("ada")), Err("api.KEY-1"));
        assert_eq!(value.filled(|_| Some("${secret.USER}")).unwrap(), "Basic ${secret.USER}:${secret.USER}$ {}");
        let long = "a".repeat(4097);
        for bad in ["", "${secret.A", "${env.A}", "${secret.}", "${secret.a b}", "a\r\nb", &long] {
            assert!(bad.parse::<Value>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_written_again(
            pieces in prop::collection::vec(prop_oneof!["[a-z$ }]{1,5}", r"\$\{secret\.[A-Z]{1,3}\}"], 1..6),
        ) {
            let text = pieces.concat();
            let value: Value = text.parse().expect("a value");
            prop_assert_eq!(value.to_string(), text.clone());
            // As a reader would do it by hand.
            let by_hand = ["A", "B"].iter().fold(text, |text, name| text.replace(&format!("${{secret.{name}}}"), "x"));
            if let Ok(filled) = value.filled(|name| ["A", "B"].contains(&name).then_some("x")) {
                prop_assert_eq!(filled, by_hand);
            }
        }
    }
}
