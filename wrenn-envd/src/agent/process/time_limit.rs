//! The time that a caller gives a process.

use std::time::Duration;

use hyper::HeaderMap;
use tokio::time::Instant;

/// When a process's time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct TimeLimit(pub(super) Instant);

/// Takes the time out of a request's headers, so that it is the process's alone: whoever serves the call would end it by the
/// same time, and before the process has been killed for it. What cannot be understood is left there.
pub(in crate::agent) fn take_time_limit(headers: &mut HeaderMap) -> Option<TimeLimit> {
    for (name, parse) in [(CONNECT, parse_connect as fn(&str) -> Option<Duration>), (GRPC, parse_grpc)] {
        if let Some(limit) = headers.get(name).and_then(|value| parse(value.to_str().ok()?.trim())) {
            headers.remove(name);
            // What is too far away to be told is no limit.
            return Instant::now().checked_add(limit).map(TimeLimit);
        }
    }
    None
}

/// Milliseconds, in at most ten digits.
fn parse_connect(text: &str) -> Option<Duration> {
    number(text, 10).map(Duration::from_millis)
}

/// At most eight digits, and the letter of a unit.
fn parse_grpc(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let amount = number(text.strip_suffix(unit)?, 8)?;
    match unit {
        'H' => Some(Duration::from_secs(amount * 3600)),
        'M' => Some(Duration::from_secs(amount * 60)),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

fn number(text: &str, digits_max: usize) -> Option<u64> {
    let is_number = (1..=digits_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Of the Connect protocol, and of gRPC.
const CONNECT: &str = "connect-timeout-ms";
const GRPC: &str = "grpc-timeout";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_times_are_taken_and_what_is_none_is_left() {
        assert_eq!(parse_connect("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_grpc("15S"), Some(Duration::from_secs(15)));
        assert_eq!(parse_grpc("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "-1", "1.5", "12345678901", "x"] {
            assert_eq!(parse_connect(bad), None, "{bad}");
        }
        for bad in ["", "S", "1", "1x", "123456789S", "-1S", "1\u{e9}"] {
            assert_eq!(parse_grpc(bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(GRPC, "100m".parse().unwrap());
        headers.insert(CONNECT, "soon".parse().unwrap());
        let limit = take_time_limit(&mut headers).unwrap();
        assert!(limit.0 <= Instant::now() + Duration::from_millis(100));
        assert_eq!(headers.len(), 1);
    }
}
