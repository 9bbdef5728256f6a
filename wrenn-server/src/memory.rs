//! How much free memory the program keeps to itself.

mod sys;

use std::time::Duration;

/// Has glibc's allocator give memory back to the machine as soon as it is free, and in each of its arenas.
///
/// On its own it learns from the first large buffer that is freed to keep buffers of that size, and twice as much in the
/// arena of each thread: a server that has paused a hundred sandboxes has some 70 MiB that nobody uses. The cost is a system
/// call or two for each buffer of 128 KiB and more. And there is one arena for each processor: on its own glibc makes one for
/// each of the first threads, up to eight times as many, most of which wait. It holds for the whole program, and so it is the
/// program's to call.
pub fn give_back_what_is_free() {
    sys::fix_thresholds(KEPT_BYTES_MAX);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    sys::limit_arenas(processors.try_into().unwrap_or(std::ffi::c_int::MAX));
}

/// Gives back, each so often and for the first time at once, what is free between buffers that are in use: such as what the
/// start has needed, and a burst of requests. The allocator on its own gives back what is free at the end of an arena alone. It
/// never ends.
///
/// # Cancel-Safety
/// What was given back is.
///
/// # Examples
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let tending = tokio::spawn(wrenn_server::memory::keep_giving_back());
/// # tending.abort();
/// # });
/// ```
pub async fn keep_giving_back() {
    let mut each = tokio::time::interval(GIVEN_BACK_EACH);
    loop {
        each.tick().await;
        // It holds each arena's lock while it looks for free pages there, which with many takes milliseconds.
        if let Err(error) = tokio::task::spawn_blocking(sys::trim).await {
            tracing::warn!(%error, "free memory was not given back");
        }
    }
}

const GIVEN_BACK_EACH: Duration = Duration::from_secs(30);
/// What glibc begins with.
const KEPT_BYTES_MAX: std::ffi::c_int = 128 << 10;

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    /// What is resident is the whole program's: each of these tests has it for itself.
    static ALONE: Mutex<()> = Mutex::new(());

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("it is there");
        let pages: usize = statm.split(' ').nth(1).expect("a number").parse().expect("a number");
        pages * 4096
    }

    #[test]
    fn what_is_free_between_buffers_is_given_back() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        const BUFFER_BYTES: usize = 64 << 10;
        let mut buffers: Vec<_> = (0..512).map(|fill: usize| vec![fill.to_le_bytes()[0] | 1; BUFFER_BYTES]).collect();
        let mut is_kept = false;
        let full = resident_bytes();
        // Every second one stays, so that none of the others is at the end of anything.
        buffers.retain(|_| {
            is_kept = !is_kept;
            is_kept
        });
        sys::trim();
        let after = resident_bytes();
        assert!(after + 64 * BUFFER_BYTES < full, "{} KiB less", full.saturating_sub(after) >> 10);
    }

    #[test]
    fn a_thread_that_has_freed_large_buffers_keeps_none() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        const BUFFER_BYTES: usize = 4 << 20;
        let work = || {
            for _ in 0..4 {
                let buffers: Vec<_> = (0..2).map(|fill| vec![fill + 1_u8; BUFFER_BYTES]).collect();
                assert!(buffers.iter().all(|buffer| buffer.ends_with(&[buffer[0]])));
            }
        };
        give_back_what_is_free();
        let (done, threads) = (std::sync::Barrier::new(5), 4);
        std::thread::scope(|scope| {
            let before = resident_bytes();
            for _ in 0..threads {
                scope.spawn(|| {
                    work();
                    done.wait();
                    done.wait();
                });
            }
            done.wait();
            let after = resident_bytes();
            done.wait();
            assert!(after < before + 2 * BUFFER_BYTES, "{} KiB more", (after - before) >> 10);
        });
    }
}
