//! The end of a sandbox's time-to-live.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::state::{Lifetime, OnExpiry, TtlFrom};

/// A time-to-live that runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Countdown {
    /// `None`: it never ends.
    pub(super) lifetime: Option<Lifetime>,
    /// The last one that there was: what becomes of the sandbox, and what its time counts from.
    known: Lifetime,
    /// When it was set.
    since: Instant,
}

impl Countdown {
    pub(super) fn start(lifetime: Option<Lifetime>) -> Self {
        Self { lifetime, known: lifetime.unwrap_or_default(), since: Instant::now() }
    }

    /// Begins anew with another time-to-live. What the sandbox's time counts from, and what becomes of it then, stay as
    /// they were, also where it had no end in between.
    pub(super) fn restart(&mut self, ttl: Option<Duration>) {
        self.lifetime = ttl.map(|ttl| Lifetime { ttl, ..self.known });
        self.since = Instant::now();
    }

    /// The instant of the end, for a guest that was last used at `last_used`. A time-to-live beyond what a clock can
    /// tell never ends.
    pub(super) fn ends_at(&self, last_used: Instant) -> Option<Instant> {
        let lifetime = self.lifetime?;
        let from = match lifetime.from {
            TtlFrom::Start => self.since,
            TtlFrom::LastUse => self.since.max(last_used),
        };
        from.checked_add(lifetime.ttl).filter(|end| end.saturating_duration_since(self.since) < NEVER)
    }

    /// The same as a time of day.
    pub(super) fn ends_at_time(&self, last_used: Instant) -> Option<SystemTime> {
        let left = self.ends_at(last_used)?.saturating_duration_since(Instant::now());
        SystemTime::now().checked_add(left)
    }

    pub(super) fn on_expiry(&self) -> OnExpiry {
        self.lifetime.map_or(OnExpiry::Kill, |lifetime| lifetime.on_expiry)
    }
}

/// The runtime's timer takes some two years; a longer wait would end early. No sandbox runs for that long.
const NEVER: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn countdown(ttl: Duration, from: TtlFrom) -> Countdown {
        Countdown::start(Some(Lifetime { ttl, on_expiry: OnExpiry::Kill, from }))
    }

    #[test]
    fn a_fixed_end_does_not_care_for_use_and_idle_time_does() {
        let hour = Duration::from_secs(3600);
        let later = Instant::now() + hour / 2;
        let fixed = countdown(hour, TtlFrom::Start);
        assert_eq!(fixed.ends_at(later), Some(fixed.since + hour));
        let idle = countdown(hour, TtlFrom::LastUse);
        assert_eq!(idle.ends_at(later), Some(later + hour));
        assert_eq!(idle.ends_at(idle.since - hour), Some(idle.since + hour), "it begins when it is set");
    }

    #[test]
    fn what_no_clock_can_tell_never_ends() {
        for ttl in [Duration::MAX, Duration::from_secs(u64::MAX), NEVER] {
            assert_eq!(countdown(ttl, TtlFrom::Start).ends_at(Instant::now()), None, "{ttl:?}");
        }
    }

    #[test]
    fn another_time_to_live_keeps_what_it_counts_from_and_what_follows() {
        let mut countdown = countdown(Duration::from_secs(1), TtlFrom::LastUse);
        countdown.restart(Some(Duration::from_secs(2)));
        assert_eq!(countdown.lifetime.map(|lifetime| lifetime.from), Some(TtlFrom::LastUse));
        countdown.restart(None);
        assert_eq!(countdown.ends_at(Instant::now()), None);
        countdown.restart(Some(Duration::from_secs(3)));
        assert_eq!(countdown.lifetime.map(|lifetime| lifetime.from), Some(TtlFrom::LastUse), "also after none");
    }
}
