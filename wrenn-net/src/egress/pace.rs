//! How many new things may be begun in a second, and how many bytes carried.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A bucket of tokens: so many in a second, and as many at once.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, tokens: per_second, at: Instant::now() }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + since * self.per_second).min(self.per_second);
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

/// So many bytes in a second, and an eighth as many at once.
#[derive(Debug)]
pub(super) struct Bandwidth {
    per_second: f64,
    state: Mutex<Carried>,
}

#[derive(Debug)]
struct Carried {
    /// What may be carried now; below zero, what was carried too early.
    tokens: f64,
    at: Instant,
}

impl Bandwidth {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 bytes a second there is no limit")]
        let per_second = bytes_per_second.max(1) as f64;
        Self { per_second, state: Mutex::new(Carried { tokens: per_second / BURSTS, at: Instant::now() }) }
    }

    /// Takes `bytes`, and tells how long to wait before they are carried, so that no more than so many go in a second.
    pub(super) fn take(&self, bytes: usize) -> Duration {
        self.take_at(bytes, Instant::now())
    }

    /// Takes `bytes` where nobody waits already.
    pub(super) fn take_if_free(&self, bytes: usize) -> bool {
        self.take_if_free_at(bytes, Instant::now())
    }

    fn take_at(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.earn(self.per_second, now);
        state.tokens -= as_tokens(bytes);
        Duration::try_from_secs_f64(-state.tokens / self.per_second).unwrap_or(Duration::ZERO)
    }

    fn take_if_free_at(&self, bytes: usize, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.earn(self.per_second, now);
        let is_free = state.tokens > 0.0;
        if is_free {
            state.tokens -= as_tokens(bytes);
        }
        is_free
    }

    /// What to carry at a time, so that others who share this do not wait long.
    pub(super) fn piece(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is above zero, and bounded")]
        let piece = (self.per_second / BURSTS / 4.0).min(1e9) as usize;
        piece.max(PIECE_MIN)
    }
}

impl Carried {
    fn earn(&mut self, per_second: f64, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + since * per_second).min(per_second / BURSTS);
    }
}

#[expect(clippy::cast_precision_loss, reason = "pieces are small")]
fn as_tokens(bytes: usize) -> f64 {
    bytes as f64
}

/// A burst is what goes in an eighth of a second.
const BURSTS: f64 = 8.0;
const PIECE_MIN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_in_a_while_is_what_may_be_and_a_burst() {
        for (per_second, piece) in [(1_000, 512), (80_000, 1400), (1 << 20, 64 << 10), (100 << 20, 64 << 10)] {
            let bandwidth = Bandwidth::new(per_second);
            let begun = bandwidth.state.lock().expect("not poisoned").at;
            let (mut now, mut carried) = (begun, 0);
            while now < begun + Duration::from_secs(10) {
                now += bandwidth.take_at(piece, now);
                carried += piece as u64;
            }
            let most = per_second * 10 + per_second / 8 + piece as u64;
            assert!((per_second * 10..=most).contains(&carried), "{carried} in 10 s at {per_second}");
        }
    }

    #[test]
    fn what_cannot_wait_is_carried_while_there_is_room() {
        let bandwidth = Bandwidth::new(80_000);
        let begun = bandwidth.state.lock().expect("not poisoned").at;
        let carried = |after_ms| {
            (0..100).filter(|_| bandwidth.take_if_free_at(1_000, begun + Duration::from_millis(after_ms))).count()
        };
        assert_eq!([0, 0, 50, 10_000].map(carried), [10, 0, 4, 10]);
    }

    #[test]
    fn what_is_too_much_at_once_waits_for_its_second() {
        let mut pace = Pace::new(10);
        let begun = pace.at;
        let taken = |pace: &mut Pace, after_ms| {
            (0..100).filter(|_| pace.take_at(begun + Duration::from_millis(after_ms))).count()
        };
        assert_eq!([0, 0, 350, 350, 10_000].map(|ms| taken(&mut pace, ms)), [10, 0, 3, 0, 10]);
    }
}
