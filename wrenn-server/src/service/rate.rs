//! How often each key may ask.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// What each key has sent lately.
#[derive(Debug, Default)]
pub struct Rates(Mutex<HashMap<String, (NonZeroU32, Arc<DefaultDirectRateLimiter>)>>);

impl Rates {
    /// Counts a request of a key that may send `per_sec` in a second: on average, and as many at once.
    ///
    /// # Errors
    /// How long to wait, where it is one too many.
    pub fn count(&self, key: &str, per_sec: Option<u32>) -> Result<(), Duration> {
        let Some(per_sec) = per_sec.and_then(NonZeroU32::new) else { return Ok(()) };
        let limiter = self.limiter(key, per_sec);
        limiter.check().map_err(|not_yet| not_yet.wait_time_from(DefaultClock::default().now()))
    }

    fn limiter(&self, key: &str, per_sec: NonZeroU32) -> Arc<DefaultDirectRateLimiter> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || (per_sec, Arc::new(RateLimiter::direct(Quota::per_second(per_sec))));
        let of_key = all.entry(key.to_owned()).or_insert_with(new);
        if of_key.0 != per_sec {
            *of_key = new();
        }
        Arc::clone(&of_key.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_sends_no_more_than_it_may_and_another_is_not_hindered() {
        let rates = Rates::default();
        for _ in 0..3 {
            rates.count("ada", Some(3)).expect("it may");
        }
        let wait = rates.count("ada", Some(3)).expect_err("it may not");
        assert!(wait > Duration::ZERO && wait < Duration::from_secs(1), "{wait:?}");
        rates.count("eve", Some(3)).expect("it may");
        rates.count("ada", Some(4)).expect("its limit is another one");
        for _ in 0..10_000 {
            rates.count("bob", None).expect("nothing is limited");
        }
    }
}
