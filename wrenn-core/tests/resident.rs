//! Once all of a restored guest's memory is in place, it needs its snapshot's files no more, and all else goes on as
//! before: what it writes is found, and pauses and forks are right.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::run;
use wrenn_core::{Paging, Sandbox};

/// Every byte of what the guest keeps in memory.
const SUM: &str = "sha256sum < /dev/shm/data";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_memory_is_all_in_place_runs_on_without_its_snapshot() {
    vm_test_or_return!();
    let dir = common::own_data_dir();
    let host = common::own_host(&dir).paging(Paging::Populate).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "head -c 20000000 /dev/urandom > /dev/shm/data").await;
    let model = run(&sandbox, SUM).await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();

    wait_until_detached(&sandbox).await;
    assert_eq!(memory_files_open(dir.path()), 0, "the page server let go of what it read");
    let aside = MovedAside::of(dir.path());
    assert!(!aside.0.is_empty());
    assert_eq!(run(&sandbox, SUM).await, model);
    drop(aside);

    // What is written from now on is found, and that alone.
    run(&sandbox, "head -c 3000000 /dev/urandom | dd of=/dev/shm/data bs=1M seek=4 conv=notrunc status=none").await;
    let model = run(&sandbox, SUM).await;
    let children = sandbox.fork(2).await.unwrap();
    for child in children {
        let child = child.unwrap();
        assert_eq!(run(&child, SUM).await, model);
        child.kill().await.unwrap();
    }
    run(&sandbox, "head -c 1048576 /dev/zero | dd of=/dev/shm/data bs=1M seek=9 conv=notrunc status=none").await;
    let model = run(&sandbox, SUM).await;
    let paused = sandbox.pause().await.unwrap();
    assert!(paused.stored_bytes() < 16 << 20, "{} bytes", paused.stored_bytes());
    let sandbox = paused.resume().await.unwrap();
    assert_eq!(run(&sandbox, SUM).await, model);

    // And its end is an end like any other, for the program as well.
    wait_until_detached(&sandbox).await;
    let vmm = sandbox.vmm_pid().await.unwrap();
    sandbox.kill().await.unwrap();
    assert!(!common::is_alive(vmm));
}

async fn wait_until_detached(sandbox: &Sandbox) {
    let mut tries = 0;
    loop {
        let report = sandbox.restore_report().await.unwrap();
        if report.memory.detached {
            assert_eq!(report.memory.pages, report.memory.total_pages, "{report:?}");
            return;
        }
        tries += 1;
        assert!(tries < 600, "{report:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many descriptors this program has of the memory that is stored in a data directory.
fn memory_files_open(data_dir: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    files.filter(|file| file.starts_with(data_dir) && file.ends_with("memory.data")).count()
}

/// The stored memory of every generation, under another name until this is dropped.
struct MovedAside(Vec<PathBuf>);

impl MovedAside {
    fn of(data_dir: &Path) -> Self {
        let files = common::files(&data_dir.join("generations"));
        let files: Vec<_> = files.into_iter().filter(|file| file.ends_with("memory.data")).collect();
        files.iter().for_each(|file| std::fs::rename(file, file.with_extension("aside")).unwrap());
        Self(files)
    }
}

impl Drop for MovedAside {
    fn drop(&mut self) {
        self.0.iter().for_each(|file| std::fs::rename(file.with_extension("aside"), file).unwrap());
    }
}
