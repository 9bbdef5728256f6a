use hyper::{
    HeaderMap, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};

use crate::agent::api_error::ApiError;

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
}

impl Encoding {
    /// The one that a client wants: gzip where it is accepted.
    pub(super) fn wanted(headers: &HeaderMap) -> Result<Self, ApiError> {
        let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let (mut gzip, mut identity, mut other) = (None, None, None);
        for item in values.flat_map(|value| value.split(',')) {
            let mut words = item.split(';').map(str::trim);
            let name = words.next().unwrap_or("").to_ascii_lowercase();
            let is_refused = words.any(|word| {
                let weight = word.strip_prefix("q=").or_else(|| word.strip_prefix("Q="));
                weight.is_some_and(|weight| weight.trim().parse().is_ok_and(|weight: f32| weight <= 0.0))
            });
            match name.as_str() {
                "gzip" | "x-gzip" => gzip = Some(!is_refused),
                "identity" => identity = Some(!is_refused),
                "*" => other = Some(!is_refused),
                _ => {}
            }
        }
        match (gzip.or(other), identity.or(other)) {
            (Some(true), _) => Ok(Self::Gzip),
            (_, None | Some(true)) => Ok(Self::Identity),
            (_, Some(false)) => {
                Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "gzip and identity are the only encodings there are"))
            }
        }
    }

    /// The one that a body has.
    pub(super) fn of_body(headers: &HeaderMap) -> Result<Self, ApiError> {
        match headers.get(CONTENT_ENCODING).map(|value| value.as_bytes().trim_ascii().to_ascii_lowercase()).as_deref() {
            None | Some(b"" | b"identity") => Ok(Self::Identity),
            Some(b"gzip" | b"x-gzip") => Ok(Self::Gzip),
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                let message = format!("the content encoding {other:?} is not supported; gzip and identity are");
                Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_where_it_is_accepted() {
        let wanted = |value: &'static str| {
            Encoding::wanted(&HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())])).ok()
        };
        for (value, encoding) in [
            ("", Some(Encoding::Identity)),
            ("gzip", Some(Encoding::Gzip)),
            ("br, GZIP;q=0.5", Some(Encoding::Gzip)),
            ("gzip;q=0, deflate", Some(Encoding::Identity)),
            ("identity", Some(Encoding::Identity)),
            ("*", Some(Encoding::Gzip)),
            ("gzip;q=0, *", Some(Encoding::Identity)),
            ("identity;q=0", None),
            ("*;q=0", None),
            ("br, *;q=0.0", None),
            ("identity;q=0, gzip", Some(Encoding::Gzip)),
        ] {
            assert_eq!(wanted(value), encoding, "{value}");
        }
        assert_eq!(Encoding::wanted(&HeaderMap::new()).ok(), Some(Encoding::Identity));
    }
}
