//! Cycle after cycle, a program holds no more than before: memory, descriptors, threads, namespaces and files are flat.
//!
//! `WRENN_TEST_CYCLES` says how many cycles; 12 unless it does. What is held is printed every 50. `MALLOC_ARENA_MAX=1` beside it
//! shows the memory as it is: glibc's allocator keeps some 5 MiB, a cycle's most, in each of up to eight arenas a processor,
//! and these fill over hundreds of cycles. A profiler of the heap found 0.46 to 0.6 MB in use after each of 60 cycles.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::run;
use wrenn_core::Sandbox;

/// What this program holds between two cycles.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Without the program's own text, more and more of which is read from its file.
    anonymous_kib: u64,
    descriptors: usize,
    threads: usize,
    namespaces: usize,
    vmms: usize,
    files: usize,
}

impl Held {
    fn now(data_dir: &Path) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let links: Vec<_> = links.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        Self {
            anonymous_kib: anonymous.trim().trim_end_matches(" kB").parse().unwrap(),
            descriptors: links.len(),
            threads: std::fs::read_dir("/proc/self/task").unwrap().count(),
            namespaces: links.iter().filter(|link| link.to_string_lossy().starts_with("net:")).count(),
            vmms: common::own_vmms().len(),
            files: common::files(data_dir).len(),
        }
    }

    /// What it holds once what ends a moment later has ended.
    async fn at_rest(data_dir: &Path) -> Self {
        let mut last = Self::now(data_dir);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = Self::now(data_dir);
            let is_at_rest = (now.descriptors, now.threads, now.files) == (last.descriptors, last.threads, last.files);
            if is_at_rest && now.namespaces == SLOTS_READY {
                break;
            }
            last = now;
        }
        last
    }
}

const SLOTS_READY: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_holds_is_flat_over_cycles() {
    vm_test_or_return!();
    let cycles: u32 = std::env::var("WRENN_TEST_CYCLES").map_or(12, |cycles| cycles.parse().unwrap());
    let dir = common::own_data_dir();
    let host = common::own_host(&dir).slots(SLOTS_READY).open().await.unwrap();
    let mut first = None;
    for number in 1..=cycles {
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        assert_eq!(run(&sandbox, "echo in > /tmp/note; cat /tmp/note").await, "in");
        let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        assert_eq!(run(&child, "cat /tmp/note").await, "in");
        child.kill().await.unwrap();
        sandbox.kill().await.unwrap();
        let warmed_up = number == (cycles / 4).clamp(4, 25);
        if warmed_up || number.is_multiple_of(50) || number == cycles {
            let held = Held::at_rest(dir.path()).await;
            println!("after {number} cycles: {held:?}");
            let first: Held = *first.get_or_insert(held);
            assert_eq!((held.namespaces, held.vmms), (SLOTS_READY, 0), "{held:?}");
            assert!(held.descriptors <= first.descriptors, "{held:?} after {first:?}");
            assert!(held.files <= first.files, "{held:?} after {first:?}");
            // The runtime's threads for blocking work come and go; eight are neither a leak of one a cycle nor of one in ten.
            assert!(held.threads <= first.threads + 8, "{held:?} after {first:?}");
            let room_mib = if std::env::var("MALLOC_ARENA_MAX").as_deref() == Ok("1") { 8 } else { 40 };
            assert!(held.anonymous_kib <= first.anonymous_kib + room_mib * 1024, "{held:?} after {first:?}");
        }
    }
}
