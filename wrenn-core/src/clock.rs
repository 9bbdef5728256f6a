//! The time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    unix_ms_of(SystemTime::now())
}

fn unix_ms_of(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time that so many milliseconds since 1970 are; 1970 itself for what no clock shows.
pub(crate) fn time_of(unix_ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms)).unwrap_or(UNIX_EPOCH)
}

/// For fields that are written as milliseconds since 1970: `#[serde(serialize_with = "crate::clock::as_unix_ms")]`.
pub(crate) fn as_unix_ms<S: serde::Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(unix_ms_of(*time))
}

/// The same, for a time that may not be there.
pub(crate) fn as_some_unix_ms<S: serde::Serializer>(
    time: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => as_unix_ms(time, serializer),
        None => serializer.serialize_none(),
    }
}
