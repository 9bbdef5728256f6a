//! Where the file system shares storage, a fork's drive is a clone, and that of the instant too.

mod common;

use common::mount::Mount;
use common::run;
use wrenn_core::{Host, Sandbox};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_of_a_drive_is_that_of_the_instant() {
    vm_test_or_return!();
    let xfs = match Mount::xfs() {
        Ok(xfs) => xfs,
        Err(reason) => {
            println!("skipped: a_clone_of_a_drive_is_that_of_the_instant: {reason}");
            return;
        }
    };
    common::link_images(xfs.path());
    let host = Host::builder().data_dir(xfs.path()).open().await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "head -c 96M /dev/urandom > large; sha256sum large > sum; sync").await;
    sandbox.write_file("/home/user/writer.py", WRITER).await.unwrap();
    sandbox.write_file("/home/user/check.py", CHECK).await.unwrap();
    run(&sandbox, "nohup python3 writer.py > out 2>&1 & until grep -q ready out; do sleep 0.1; done").await;
    for _ in 0..2 {
        let child = sandbox.fork(1).await.unwrap().remove(0).unwrap();
        println!("{:?}", sandbox.save_report().await.unwrap());
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
