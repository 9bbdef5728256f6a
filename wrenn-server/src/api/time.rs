//! Times as clients get them.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Of milliseconds since 1970, as records have them.
pub(in crate::api) fn of_ms(ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// To the millisecond, as records have it.
pub(in crate::api) fn rfc3339(at: OffsetDateTime) -> String {
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_milliseconds_and_a_zone() {
        assert_eq!(rfc3339(of_ms(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        let finer = OffsetDateTime::from_unix_timestamp_nanos(1_700_000_000_123_456_789).expect("a time");
        assert_eq!(rfc3339(finer), "2023-11-14T22:13:20.123Z");
    }
}
