//! The guest's clock, which stood still while the guest was frozen.

use std::{io, time::Duration};

use nix::{sys::time::TimeSpec, time::ClockId};

use crate::timestamp::Timestamp;

/// What to do about a time that the host names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// A request that was overtaken by a later one.
    Stale,
    /// Near enough: a step would do more harm than the error.
    Keep,
    Set(Timestamp),
}

/// Decides by the guest's clock, the host's, and the last time that was accepted from the host.
pub(super) fn decide(now: Timestamp, requested: Timestamp, last: Option<Timestamp>) -> Decision {
    if last.is_some_and(|last| requested < last) {
        return Decision::Stale;
    }
    let behind = requested.unix_nanos().saturating_sub(now.unix_nanos());
    if behind > nanos(BEHIND_MAX) || behind < -nanos(AHEAD_MAX) { Decision::Set(requested) } else { Decision::Keep }
}

/// Steps this machine's clock.
pub(super) fn set(to: Timestamp) -> io::Result<()> {
    let time = TimeSpec::new(to.unix_nanos().div_euclid(1_000_000_000), to.unix_nanos().rem_euclid(1_000_000_000));
    Ok(nix::time::clock_settime(ClockId::CLOCK_REALTIME, time)?)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A clock may be this far behind before it is set; E2B's bounds, which allow for the request's own way.
const BEHIND_MAX: Duration = Duration::from_millis(50);
/// And this far ahead: stepping back upsets programs more.
const AHEAD_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: i64) -> Timestamp {
        Timestamp::from_unix_nanos(ms * 1_000_000)
    }

    #[test]
    fn steps_forward_past_50_ms_and_back_past_5_s() {
        let now = at_ms(100_000);
        assert_eq!(decide(now, at_ms(100_050), None), Decision::Keep);
        assert_eq!(decide(now, at_ms(100_051), None), Decision::Set(at_ms(100_051)));
        assert_eq!(decide(now, at_ms(95_000), None), Decision::Keep);
        assert_eq!(decide(now, at_ms(94_999), None), Decision::Set(at_ms(94_999)));
    }

    #[test]
    fn ignores_a_time_older_than_the_last() {
        assert_eq!(decide(at_ms(0), at_ms(9_999), Some(at_ms(10_000))), Decision::Stale);
        assert_eq!(decide(at_ms(0), at_ms(10_000), Some(at_ms(10_000))), Decision::Set(at_ms(10_000)));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let (first, last) = (Timestamp::from_unix_nanos(i64::MIN), Timestamp::from_unix_nanos(i64::MAX));
        assert_eq!(decide(first, last, None), Decision::Set(last));
        assert_eq!(decide(last, first, None), Decision::Set(first));
    }
}
