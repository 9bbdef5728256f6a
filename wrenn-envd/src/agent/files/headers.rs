//! What `X-Metadata-KEY` headers say of an upload.

use std::collections::BTreeMap;

use hyper::HeaderMap;

use crate::agent::api_error::ApiError;

/// The metadata of an upload, by lower-case key. Of two headers of a kind the first one counts.
pub(super) fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, ApiError> {
    let mut metadata = BTreeMap::new();
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(PREFIX).filter(|key| !key.is_empty()) else { continue };
        let Some(value) = headers.get(name) else { continue };
        let is_plain = value.as_bytes().iter().all(|byte| matches!(byte, b' '..=b'~'));
        let value = value.to_str().ok().filter(|_| is_plain).ok_or_else(|| {
            ApiError::bad_request(format!("the metadata {key:?} holds something else than printable ASCII"))
        })?;
        metadata.insert(key.to_owned(), value.to_owned());
    }
    Ok(metadata)
}

const PREFIX: &str = "x-metadata-";

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn keys_are_lower_case_and_the_first_value_counts() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("X-Metadata-Author", "first"), ("x-metadata-author", "second"), ("X-Metadata-", "none")]
        {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
        }
        headers.insert("x-access-token", HeaderValue::from_static("t"));
        assert_eq!(metadata(&headers).unwrap(), BTreeMap::from([("author".to_owned(), "first".to_owned())]));
        headers.insert("x-metadata-bad", HeaderValue::from_bytes(b"\xc3\xa9").unwrap());
        assert!(metadata(&headers).unwrap_err().message.contains("bad"));
    }
}
