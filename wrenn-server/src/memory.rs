//! How much free memory the program keeps to itself.

mod sys;

/// Has glibc's allocator give memory back to the machine as soon as it is free, and in each of its arenas.
///
/// On its own it learns from the first large buffer that is freed to keep buffers of that size, and twice as much in the
/// arena of each thread: a server that has paused a hundred sandboxes has some 70 MiB that nobody uses. The cost is a system
/// call or two for each buffer of 128 KiB and more. It holds for the whole program, and so it is the program's to call.
pub fn give_back_what_is_free() {
    sys::fix_thresholds(KEPT_BYTES_MAX);
}

/// What glibc begins with.
const KEPT_BYTES_MAX: std::ffi::c_int = 128 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("it is there");
        let pages: usize = statm.split(' ').nth(1).expect("a number").parse().expect("a number");
        pages * 4096
    }

    #[test]
    fn a_thread_that_has_freed_large_buffers_keeps_none() {
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
