//! What a fork, a snapshot and a pause save of a drive is that of the instant, however they find it.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::mount::Mount;
use common::run;
use wrenn_core::{DriveSaving, Error, Host, HostBuilder, Sandbox, Tracking};

/// Writes a number to each of 256 blocks of a file in turn, each to the disk before the next: at any instant the blocks
/// hold a number up to some block, and the number before from there on.
const WRITER: &str = r"
import os, struct
f = os.open('blocks', os.O_RDWR | os.O_CREAT | os.O_SYNC)
n = 0
while True:
    n += 1
    for at in range(256): os.pwrite(f, struct.pack('<Q', n).ljust(4096, b'x'), at * 4096)
    if n == 1: print('ready', flush=True)
";
const CHECK: &str = r"
import struct, subprocess
subprocess.run(['pkill', '-STOP', '-f', 'writer.py'], check=True)
data = open('blocks', 'rb').read()
numbers = [struct.unpack_from('<Q', data, at)[0] for at in range(0, len(data), 4096)]
steps = [(i, a, b) for i, (a, b) in enumerate(zip(numbers, numbers[1:])) if a != b]
print('one instant' if len(steps) <= 1 and all(a == b + 1 for _, a, b in steps) else f'torn: {steps[:5]} of {len(steps)}')
";

/// Out of the page cache first, so that it is the drive that is read.
const SAME: &str = "sync; echo 3 | sudo -n tee /proc/sys/vm/drop_caches > /dev/null 2>&1; \
                    sha256sum --quiet -c sums && echo same";

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_whose_writes_are_told_is_that_of_the_instant() {
    vm_test_or_return!();
    let data = tempfile::tempdir().unwrap();
    is_that_of_the_instant(Host::builder(), data.path(), DriveSaving::Told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_drive_is_that_of_the_instant() {
    vm_test_or_return!();
    let xfs = match Mount::xfs() {
        Ok(xfs) => xfs,
        Err(reason) => {
            return common::skip("a_clone_of_a_drive_is_that_of_the_instant", &reason);
        }
    };
    let compares = Host::builder().tracking(Tracking::Compare);
    is_that_of_the_instant(compares, xfs.path(), DriveSaving::Cloned).await;
}

async fn is_that_of_the_instant(builder: HostBuilder, data: &Path, saving: DriveSaving) {
    common::link_images(data);
    let host = builder.data_dir(data).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "head -c 96M /dev/urandom > large; sha256sum large > sum; sync").await;
    sandbox.write_file("/home/user/writer.py", WRITER).await.unwrap();
    sandbox.write_file("/home/user/check.py", CHECK).await.unwrap();
    run(&sandbox, "nohup python3 writer.py > out 2>&1 & until grep -q ready out; do sleep 0.1; done").await;
    // Told, the first one comes from where the sandbox was restored from, and the second from the first.
    for _ in 0..if saving == DriveSaving::Told { 2 } else { 1 } {
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        let report = sandbox.save_report().await.unwrap().unwrap();
        println!("{report:?}");
        assert_eq!(report.drive, saving);
        // Out of the page cache first, so that it is the drive that is read.
        let dropped = "sync; echo 3 | sudo -n tee /proc/sys/vm/drop_caches > /dev/null 2>&1; sha256sum -c sum";
        assert_eq!(run(&child, dropped).await, "large: OK");
        assert_eq!(run(&child, "python3 check.py").await, "one instant");
        let child = child.pause().await.unwrap().resume().await.unwrap();
        assert_eq!(run(&child, "sha256sum -c sum; python3 check.py").await, "large: OK\none instant");
        child.kill().await.unwrap();
    }
    sandbox.kill().await.unwrap();
    drop(host);
}

/// Files come, change, shrink and go, and each capture of a line of them has the drive as it was.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_and_rewritten_between_captures_is_found() {
    vm_test_or_return!();
    let host = common::host().await;
    let mut sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "mkdir many; for i in $(seq 40); do head -c ${i}0k /dev/urandom > many/$i; done; sync").await;
    for round in 0..4 {
        let change = format!(
            "rm many/{0} many/2{0}; head -c 3M /dev/urandom > many/3{0}; truncate -s 5k many/1{0}; \
             printf x | dd of=many/40 bs=1 seek={0}000 conv=notrunc status=none; sudo -n fstrim /home 2> /dev/null; \
             sha256sum many/* > sums; sync",
            round + 1
        );
        run(&sandbox, &change).await;
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        assert_eq!(sandbox.save_report().await.unwrap().unwrap().drive, DriveSaving::Told);
        assert_eq!(run(&child, SAME).await, "same", "a fork's, round {round}");
        child.kill().await.unwrap();
        let paused = sandbox.pause().await.unwrap();
        assert_eq!(paused.save_report().unwrap().drive, DriveSaving::Told);
        sandbox = paused.resume().await.unwrap();
        assert_eq!(run(&sandbox, SAME).await, "same", "its own, round {round}");
    }
    sandbox.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_save_for_which_there_was_no_room_the_next_one_has_all_that_was_written() {
    vm_test_or_return!();
    let memory = Mount::tmpfs("size=900M");
    common::link_images(memory.path());
    let host = Host::builder().data_dir(memory.path()).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    // Past the guest's page cache, so that little of its memory changes.
    let direct = "dd if=/dev/urandom of=before bs=1M count=96 oflag=direct status=none; \
                  dd if=before bs=1M iflag=direct status=none | sha256sum | sed s/-/before/ > sums; sync";
    run(&sandbox, direct).await;
    // Room for the memory, and not for the drive.
    let ballast = memory.path().join("ballast");
    let free = nix::sys::statvfs::statvfs(memory.path()).unwrap();
    let free = free.blocks_free() * free.fragment_size();
    std::fs::write(&ballast, vec![1; usize::try_from(free - (64 << 20)).unwrap()]).unwrap();
    let error = sandbox.fork(1).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error:?}");
    std::fs::remove_file(&ballast).unwrap();
    run(&sandbox, "head -c 1M /dev/urandom > after; sha256sum before after > sums; sync").await;
    for saving in [DriveSaving::Compared, DriveSaving::Told] {
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        assert_eq!(sandbox.save_report().await.unwrap().unwrap().drive, saving);
        assert_eq!(run(&child, SAME).await, "same", "{saving:?}");
        child.kill().await.unwrap();
    }
    sandbox.kill().await.unwrap();
    drop(host);
}
