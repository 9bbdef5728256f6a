//! How patient wrenn is with a slow machine.

use std::sync::OnceLock;
use std::time::Duration;

/// A time-out as it is on this machine: `WRENN_TIMEOUT_FACTOR` times as long, which is a number from 1 to 100.
///
/// For what wrenn itself waits for: agents, VMMs, and boots. What a caller asked for is kept as it was asked for.
pub(crate) fn patient(time: Duration) -> Duration {
    static FACTOR: OnceLock<f64> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| {
        let said = std::env::var("WRENN_TIMEOUT_FACTOR").unwrap_or_default();
        factor_of(&said).unwrap_or_else(|| {
            tracing::warn!(said, "WRENN_TIMEOUT_FACTOR is no number from 1 to 100 and is ignored");
            1.0
        })
    });
    time.mul_f64(*factor)
}

fn factor_of(said: &str) -> Option<f64> {
    if said.is_empty() {
        return Some(1.0);
    }
    said.parse().ok().filter(|factor| (1.0..=100.0).contains(factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_is_a_number_from_1_to_100() {
        assert_eq!(factor_of(""), Some(1.0));
        assert_eq!(factor_of("2.5"), Some(2.5));
        for wrong in ["0", "0.5", "-1", "101", "NaN", "inf", "two", "1s"] {
            assert_eq!(factor_of(wrong), None, "{wrong}");
        }
    }
}
