//! The name of a request, by which a client's error and the log's lines about it are brought together.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header that has it, in requests and in answers.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The client's own name for its request, where it fits into a line of a log; else a new one.
pub(super) fn of(headers: &HeaderMap) -> HeaderValue {
    headers.get(REQUEST_ID).filter(|id| is_sane(id.as_bytes())).cloned().unwrap_or_else(new)
}

fn new() -> HeaderValue {
    let id = format!("{:032x}", rand::random::<u128>());
    HeaderValue::from_maybe_shared(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

fn is_sane(id: &[u8]) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    (1..=LEN_MAX).contains(&id.len()) && id.iter().all(is_word)
}

const LEN_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn id_of(sent: &[u8]) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(sent).expect("a header"));
        of(&headers).to_str().expect("text").to_owned()
    }

    #[test]
    fn a_sane_name_is_kept_and_any_other_replaced() {
        for sane in ["a", "3f2e_-Z", &"x".repeat(64)] {
            assert_eq!(id_of(sane.as_bytes()), sane);
        }
        for bad in [&b""[..], b"a b", b"a\"b", b"{}", "\u{e9}".as_bytes(), &[b'x'; 65]] {
            let id = id_of(bad);
            assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{bad:?}: {id}");
        }
        assert_ne!(of(&HeaderMap::new()), of(&HeaderMap::new()));
    }
}
