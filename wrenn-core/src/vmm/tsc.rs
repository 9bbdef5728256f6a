//! The rate of the processor's time stamp counter.
//!
//! An emulated guest sees the host's counter. A guest's kernel that is not told the rate measures it against a timer. A
//! busy host delivers that timer late, and the guest then waits for it for ever (seen in 6 of 6 boots under load; with
//! the rate given, in 0 of 10).

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::runtime::blocking;

/// Measures the rate, off the runtime's threads: later calls of [`tsc_khz`] answer at once.
pub(crate) async fn measure_ahead() -> Result<()> {
    elsewhere(tsc_khz).await.map(drop)
}

async fn elsewhere(measure: fn() -> Option<u32>) -> Result<Option<u32>> {
    blocking("measure the processor's clock", measure).await
}

/// The rate in kHz; `None` where the processor has no such counter. The first call in a process measures it and blocks
/// for 20 ms, unless [`measure_ahead`] was called before, as it is when a host is opened.
pub(crate) fn tsc_khz() -> Option<u32> {
    static KHZ: OnceLock<Option<u32>> = OnceLock::new();
    *KHZ.get_or_init(measure)
}

#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u32> {
    // The shortest of a few is the one that was interrupted least between reading the two clocks.
    let read = || {
        let reading = || {
            let before = Instant::now();
            let ticks = crate::sys::time_stamp_counter();
            (before.elapsed(), before, ticks)
        };
        (0..8).map(|_| reading()).min_by_key(|(took, ..)| *took)
    };
    let (_, begin, first) = read()?;
    std::thread::sleep(MEASURE_FOR);
    let (_, end, last) = read()?;
    let khz = u128::from(last.checked_sub(first)?) * 1_000_000 / end.duration_since(begin).as_nanos();
    u32::try_from(khz).ok().filter(|khz| *khz > 0)
}

#[cfg(not(target_arch = "x86_64"))]
fn measure() -> Option<u32> {
    None
}

const MEASURE_FOR: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_runtime_goes_on_while_the_rate_is_measured() {
        let measured = elsewhere(measure);
        tokio::pin!(measured);
        let mut others = 0;
        loop {
            tokio::select! {
                biased;
                khz = &mut measured => break assert_eq!(khz.unwrap().is_some(), cfg!(target_arch = "x86_64")),
                () = tokio::task::yield_now() => others += 1,
            }
        }
        assert!(others > 10 || cfg!(not(target_arch = "x86_64")), "{others}");
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn two_measurements_agree() {
        let [one, two] = [measure(), measure()].map(|khz| khz.expect("an x86-64 processor has the counter"));
        assert!(one.abs_diff(two) < one / 500, "{one} {two}");
    }
}
