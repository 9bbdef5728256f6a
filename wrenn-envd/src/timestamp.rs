use std::{
    error::Error,
    fmt,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, to the nanosecond, as the wire has it: RFC 3339 text, or nanoseconds since 1970 as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    unix_nanos: i64,
}

impl Timestamp {
    /// From nanoseconds since 1970 in UTC.
    #[must_use]
    pub fn from_unix_nanos(unix_nanos: i64) -> Self {
        Self { unix_nanos }
    }

    /// This machine's clock, now. A clock that reads before 1970, or after 2262, reads as that limit.
    #[must_use]
    pub fn now() -> Self {
        let unix_nanos = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
            Err(_) => 0,
        };
        Self { unix_nanos }
    }

    /// Nanoseconds since 1970 in UTC.
    #[must_use]
    pub fn unix_nanos(self) -> i64 {
        self.unix_nanos
    }
}

/// Why text is no RFC 3339 timestamp.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimestampError {
    text: String,
}

impl fmt::Display for TimestampError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not an RFC 3339 timestamp between 1970 and 2262", self.text)
    }
}

impl Error for TimestampError {}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.as_bytes())
            .map(|unix_nanos| Self { unix_nanos })
            .ok_or_else(|| TimestampError { text: text.chars().take(64).collect() })
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.unix_nanos)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Timestamp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 timestamp, or nanoseconds since 1970")
            }

            fn visit_i64<E: de::Error>(self, unix_nanos: i64) -> Result<Timestamp, E> {
                Ok(Timestamp { unix_nanos })
            }

            fn visit_u64<E: de::Error>(self, unix_nanos: u64) -> Result<Timestamp, E> {
                i64::try_from(unix_nanos).map(Timestamp::from_unix_nanos).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Timestamp, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `2006-01-02T15:04:05[.999999999](Z|+07:00)` to nanoseconds since 1970.
fn parse(text: &[u8]) -> Option<i64> {
    let (head, mut rest) = text.split_at_checked(19)?;
    let separators = [(4, b"-"), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")] as [(usize, &[u8]); 5];
    if separators.iter().any(|(at, allowed)| !allowed.contains(&head[*at])) {
        return None;
    }
    let (year, month, day) = (digits(&head[..4])?, digits(&head[5..7])?, digits(&head[8..10])?);
    let (hour, minute, second) = (digits(&head[11..13])?, digits(&head[14..16])?, digits(&head[17..])?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }

    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let precise = &fraction[..length.min(9)];
        nanos = digits(precise)? * 10_i64.pow(u32::try_from(9 - precise.len()).ok()?);
        rest = &fraction[length..];
    }
    let offset_minutes = match rest {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let minutes = digits(&[*h1, *h2])? * 60 + digits(&[*m1, *m2])?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3_600 + (minute - offset_minutes) * 60 + second;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos).filter(|unix_nanos| *unix_nanos >= 0)
}

fn digits(text: &[u8]) -> Option<i64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// The civil calendar, by Howard Hinnant's `days_from_civil`.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_and_python_write() {
        let nanos = |text: &str| text.parse::<Timestamp>().unwrap().unix_nanos();
        assert_eq!(nanos("1970-01-01T00:00:00Z"), 0);
        assert_eq!(nanos("2000-02-29T12:00:00.000000001Z"), 951_825_600_000_000_001);
        assert_eq!(nanos("2025-11-24T07:34:00.123456+01:00"), 1_763_966_040_123_456_000);
        assert_eq!(nanos("2025-11-24t07:34:00-00:30"), 1_763_971_440_000_000_000);
        assert_eq!(nanos("2025-11-24T07:34:00.1234567891234Z") % 1_000_000_000, 123_456_789);
    }

    #[test]
    fn refuses_the_rest() {
        for text in
            ["", "2025", "2025-11-24T07:34:00", "2025-13-24T07:34:00Z", "2025-11-24T07:34:00.Z", "9999-01-01T00:00:00Z"]
        {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
        assert!("1960-01-01T00:00:00Z".parse::<Timestamp>().is_err());
    }
}
