//! A request's body: JSON of a known shape, or an error that says what is wrong with it.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize as _, Deserializer};
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::api::v1::answer::Refused;

/// JSON, as a `T`.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let whole = Bytes::from_request(Request::from_parts(parts.clone(), body), state);
        let Ok(whole) = timeout(BODY_MAX, whole).await else {
            let message = format!("the body did not come within {} seconds: send it at once", BODY_MAX.as_secs());
            return Err(Refused::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message));
        };
        let whole = whole.map_err(|rejection| refused(&rejection.into()))?;
        let is_array = whole.trim_ascii_start().starts_with(b"[");
        let request = Request::from_parts(parts, whole.clone().into());
        match Json::from_request(request, state).await {
            Ok(_) if is_array => Err(Refused::bad_request("the body has to be an object of JSON, and is an array")),
            Ok(Json(value)) => Ok(Self(value)),
            // A number such as 12.0 is an integer to JSON Schema, though not to serde.
            Err(rejection @ JsonRejection::JsonDataError(_)) => whole_numbers(&whole)
                .and_then(|value| T::deserialize(value).ok())
                .map(Self)
                .ok_or_else(|| refused(&rejection)),
            Err(rejection) => Err(refused(&rejection)),
        }
    }
}

/// An object of JSON within a body, for `deserialize_with`: serde takes an array for one as well, with the values in the order of
/// the fields.
pub(super) fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<T, D::Error> {
    T::deserialize(Value::Object(Map::deserialize(from)?)).map_err(D::Error::custom)
}

/// The same where null stands for none.
pub(super) fn maybe_object<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let found = Option::<Map<String, Value>>::deserialize(from)?;
    found.map(|object| T::deserialize(Value::Object(object)).map_err(D::Error::custom)).transpose()
}

/// What a text has, with each number of no fraction as an integer; `None` where that changes nothing.
fn whole_numbers(text: &[u8]) -> Option<Value> {
    let mut value = serde_json::from_slice(text).ok()?;
    make_whole(&mut value).then_some(value)
}

/// Whether anything has changed. A text of JSON is not nested more deeply than serde reads it.
fn make_whole(value: &mut Value) -> bool {
    match value {
        Value::Number(number) => {
            let whole =
                number.as_f64().filter(|value| number.is_f64() && value.fract() == 0.0 && value.abs() < EXACT_MAX);
            // It is printed without a fraction, and without an exponent.
            let whole = whole.and_then(|whole| format!("{whole:.0}").parse::<i64>().ok());
            if let Some(whole) = whole {
                *number = whole.into();
            }
            whole.is_some()
        }
        Value::Array(items) => any_made_whole(items.iter_mut()),
        Value::Object(fields) => any_made_whole(fields.values_mut()),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// As [`make_whole`], of each of them.
fn any_made_whole<'a>(values: impl Iterator<Item = &'a mut Value>) -> bool {
    let mut has_changed = false;
    for value in values {
        has_changed |= make_whole(value);
    }
    has_changed
}

fn refused(rejection: &JsonRejection) -> Refused {
    match rejection {
        // What JSON of another shape lacks is as bad as what is none.
        JsonRejection::JsonDataError(_) | JsonRejection::JsonSyntaxError(_) => {
            Refused::bad_request(rejection.body_text())
        }
        JsonRejection::MissingJsonContentType(_) => Refused::new(
            rejection.status(),
            "unsupported_media_type",
            "the body has to be JSON: send `Content-Type: application/json`",
        ),
        _ if rejection.status().as_u16() == 413 => {
            Refused::new(rejection.status(), "too_large", "the body is too large: one MiB is the most")
        }
        _ => Refused::bad_request(rejection.body_text()),
    }
}

/// One MiB by the slowest of lines.
const BODY_MAX: Duration = Duration::from_secs(30);
/// Up to here each integer is a number of its own in 64 bits with a fraction.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

#[cfg(test)]
mod tests {
    use axum::http::header;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sizes {
        count: u32,
        all: Vec<u16>,
    }

    async fn read(text: &'static str) -> Result<Sizes, String> {
        let request = Request::post("/").header(header::CONTENT_TYPE, "application/json").body(text.into());
        let read = Body::from_request(request.expect("a request"), &()).await;
        read.map(|Body(sizes)| sizes).map_err(|refused| refused.into_parts().1)
    }

    #[tokio::test]
    async fn a_number_without_a_fraction_is_an_integer_however_it_is_written() {
        let sizes = |count, all: &[u16]| Ok(Sizes { count, all: all.to_vec() });
        assert_eq!(read(r#"{"count": 12, "all": [1]}"#).await, sizes(12, &[1]));
        assert_eq!(read(r#"{"count": 12.0, "all": [1.0, 2, 3e2]}"#).await, sizes(12, &[1, 2, 300]));
        for (bad, part) in [
            (r#"{"count": 12.5, "all": []}"#, "count"),
            (r#"{"count": -1.0, "all": []}"#, "count"),
            (r#"{"count": 1e300, "all": []}"#, "count"),
            (r#"{"count": 1.0, "all": [], "more": 1}"#, "count"),
            (r#"{"count": 1"#, "EOF"),
        ] {
            let error = read(bad).await.expect_err(bad);
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
