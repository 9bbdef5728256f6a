use std::borrow::Cow;

use crate::agent::api_error::ApiError;

/// The query of a call: `?path=…&username=…&signature=…&signature_expiration=…`. Of two of a kind the first one counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) path: Option<String>,
    pub(super) username: Option<String>,
    pub(super) signature: Option<String>,
    /// In seconds since 1970.
    pub(super) expiration: Option<i64>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut query = Self::default();
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match name {
                "path" => &mut query.path,
                "username" => &mut query.username,
                "signature" => &mut query.signature,
                "signature_expiration" => {
                    if query.expiration.is_none() && !value.is_empty() {
                        query.expiration = Some(seconds(value)?);
                    }
                    continue;
                }
                _ => continue,
            };
            if field.is_none() {
                *field = Some(decode(value)?);
            }
        }
        Ok(query)
    }
}

fn seconds(text: &str) -> Result<i64, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("signature_expiration is no number of seconds: {text:?}")))
}

/// Percent-decoding, with `+` for a blank as forms have it.
fn decode(text: &str) -> Result<String, ApiError> {
    let refused = || ApiError::bad_request(format!("{text:?} is no UTF-8, or is badly escaped"));
    let text = if text.contains('+') { Cow::from(text.replace('+', " ")) } else { Cow::from(text) };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let (digits, after) = rest.split_at_checked(2).ok_or_else(refused)?;
            let digits = std::str::from_utf8(digits).map_err(|_| refused())?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| refused())?);
            rest = after;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decodes_what_clients_escape() {
        assert_eq!(decode("%2Ftmp%2Fa+b%20c%C3%A9%2B").unwrap(), "/tmp/a b cé+");
        for text in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_of_a_kind_counts() {
        let query = Query::parse("a=1&path=%2Fx&path=y&username=&signature=v1_a%2Fb&signature_expiration=17").unwrap();
        assert_eq!(query.path.as_deref(), Some("/x"));
        assert_eq!(query.username.as_deref(), Some(""));
        assert_eq!((query.signature.as_deref(), query.expiration), (Some("v1_a/b"), Some(17)));
        assert_eq!(Query::parse("").unwrap(), Query::default());
        assert!(Query::parse("signature_expiration=soon").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_a_query_or_a_refusal(text in "[ -~]{0,60}") {
            let _ = Query::parse(&text);
        }

        #[test]
        fn what_is_escaped_comes_back(path in "\\PC{0,40}") {
            let escaped: String = path.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(Query::parse(&format!("path={escaped}")).unwrap().path, Some(path));
        }
    }
}
