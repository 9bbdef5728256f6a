//! How much longer than on a machine of its own everything in the lab may take.

use std::num::NonZero;
use std::time::Duration;

/// A factor for the lab's bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Patience(f64);

impl Default for Patience {
    /// That of a machine without other work.
    fn default() -> Self {
        Self(1.0)
    }
}

impl Patience {
    /// By what this machine's processors have to do already.
    pub(super) fn now() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self::of(&load, processors)
    }

    /// `load` is what `/proc/loadavg` says. What cannot be read is taken for no load.
    fn of(load: &str, processors: usize) -> Self {
        let load = load.split_whitespace().next().and_then(|minute| minute.parse::<f64>().ok()).unwrap_or(0.0);
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        Self((load / f64::from(processors)).clamp(1.0, FACTOR_MAX))
    }

    /// For work that takes so many times as long by itself.
    pub(super) fn for_slower(self, times: f64) -> Self {
        Self(self.0 * times)
    }

    pub(super) fn factor(self) -> f64 {
        self.0
    }

    /// How long something may take here that may take `bound` elsewhere.
    pub(super) fn times(self, bound: Duration) -> Duration {
        bound.mul_f64(self.0)
    }
}

impl std::fmt::Display for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1}", self.0)
    }
}

const FACTOR_MAX: f64 = 4.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_with_the_load_of_each_processor_up_to_a_limit() {
        for (load, factor) in [("1.00 9 9 1/2 3", 1.0), ("5.00 1 1", 2.5), ("90.0", FACTOR_MAX), ("", 1.0)] {
            assert_eq!(Patience::of(load, 2), Patience(factor), "{load}");
        }
        assert_eq!(Patience(1.5).for_slower(2.0), Patience(3.0));
        assert_eq!(Patience(2.5).times(Duration::from_secs(2)), Duration::from_secs(5));
    }
}
