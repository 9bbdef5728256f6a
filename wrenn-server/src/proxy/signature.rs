//! Addresses of files that are signed, so that whoever has one needs no token.
//!
//! `signature` is `v1_` and, in base64 without padding, the SHA-256 of `PATH:OPERATION:USER:TOKEN[:EXPIRATION]`, as E2B's clients
//! make it.

use axum::http::Method;
use axum::http::request::Parts;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What of a request for a file is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    text: String,
    expiration: Option<String>,
    signature: String,
}

impl Signed {
    /// The signature that a request has, if it has one.
    pub(super) fn of(parts: &Parts) -> Option<Self> {
        let value = |name: &str| {
            let pairs = parts.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.into_iter().find(|(of, _)| *of == name)?;
            Some(percent_decode_str(&value.replace('+', "%20")).decode_utf8_lossy().into_owned())
        };
        // A plus sign of base64 may come as it is.
        let signature = value("signature")?.replace(' ', "+");
        let operation = if parts.method == Method::GET { "read" } else { "write" };
        let (path, user) = (value("path").unwrap_or_default(), value("username").unwrap_or_default());
        Some(Self { text: format!("{path}:{operation}:{user}"), expiration: value("signature_expiration"), signature })
    }

    /// Whether it was made with that token, and is still good.
    pub(super) fn is_by(&self, token: &str, now_sec: i64) -> bool {
        let is_over = |end: &String| end.parse::<i64>().map_or(true, |end| end < now_sec);
        if self.expiration.as_ref().is_some_and(is_over) {
            return false;
        }
        let text = match &self.expiration {
            Some(end) => format!("{}:{token}:{end}", self.text),
            None => format!("{}:{token}", self.text),
        };
        let right = format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)));
        right.as_bytes().ct_eq(self.signature.as_bytes()).into()
    }
}

/// A request's query without its signature, which is of a token that the guest's agent does not have.
pub(super) fn without(query: &str) -> String {
    let rest =
        query.split('&').filter(|pair| !pair.starts_with("signature=") && !pair.starts_with("signature_expiration="));
    rest.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn signed(uri: &str) -> Option<Signed> {
        Signed::of(&Request::get(uri).body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn a_signature_is_for_one_path_operation_user_and_time() {
        // Made by E2B's own client, of the token "secret".
        let digest = |text: &str| STANDARD_NO_PAD.encode(Sha256::digest(text)).replace('+', "%2B").replace('/', "%2F");
        let plain = format!("/files?path=/a%20b&signature=v1_{}", digest("/a b:read::secret"));
        assert!(signed(&plain).expect("signed").is_by("secret", 5));
        assert!(!signed(&plain).expect("signed").is_by("other", 5));
        assert!(!signed(&plain.replace("a%20b", "c")).expect("signed").is_by("secret", 5));
        let timed =
            format!("/files?path=/a&username=u&signature=v1_{}&signature_expiration=9", digest("/a:read:u:secret:9"));
        assert!(signed(&timed).expect("signed").is_by("secret", 9));
        assert!(!signed(&timed).expect("signed").is_by("secret", 10), "it is over");
        assert!(!signed(&timed.replace("=9", "=10")).expect("signed").is_by("secret", 9));
        assert!(!signed(&timed.replace("=9", "=x")).expect("signed").is_by("secret", 9));
        assert_eq!(signed("/files?path=/a"), None);
        assert_eq!(without("path=/a&signature=v1_x&username=u&signature_expiration=9"), "path=/a&username=u");
    }
}
