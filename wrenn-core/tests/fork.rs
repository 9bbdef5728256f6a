//! Forks continue from one point and diverge, each as somebody of its own.

mod common;

use std::collections::HashSet;

use common::run;
use wrenn_core::{Error, Sandbox, Tracking};

async fn all(children: Vec<wrenn_core::Result<Sandbox>>) -> Vec<Sandbox> {
    children.into_iter().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_goes_on_in_the_parent_and_in_each_child() {
    vm_test_or_return!();
    let (_host, parent) = common::sandbox().await;
    // Renamed, since who reads between the emptying and the writing of a file finds nothing.
    let count = "cd /dev/shm; n=0; while true; do n=$((n + 1)); echo $n > new; mv new count; sleep 0.02; done";
    run(&parent, &format!("nohup bash -c '{count}' > /dev/null 2>&1 &")).await;
    run(&parent, "until [ -s /dev/shm/count ]; do sleep 0.05; done; echo parent > /home/user/name").await;
    let before: u64 = run(&parent, "cat /dev/shm/count").await.parse().unwrap();

    let children = all(parent.fork(4).await.unwrap()).await;
    for (number, child) in children.iter().enumerate() {
        assert_eq!(run(child, "cat /home/user/name").await, "parent");
        run(child, &format!("echo child {number} > /home/user/name")).await;
    }
    for sandbox in children.iter().chain([&parent]) {
        let line = "a=$(cat /dev/shm/count); sleep 0.5; b=$(cat /dev/shm/count); echo $a $b";
        let counts = run(sandbox, line).await;
        let (a, b) = counts.split_once(' ').unwrap();
        let (a, b): (u64, u64) = (a.parse().unwrap(), b.parse().unwrap());
        assert!(before <= a && a < b, "{before} {a} {b}");
    }
    assert_eq!(run(&parent, "cat /home/user/name").await, "parent");
    for (number, child) in children.iter().enumerate() {
        assert_eq!(run(child, "cat /home/user/name").await, format!("child {number}"));
    }
    // A child is a sandbox like any other.
    let grandchild = all(children[0].fork(1).await.unwrap()).await.remove(0);
    assert_eq!(run(&grandchild, "cat /home/user/name").await, "child 0");
    let paused = children[1].pause().await.unwrap();
    let resumed = paused.resume().await.unwrap();
    assert_eq!(run(&resumed, "cat /home/user/name").await, "child 1");
    for sandbox in [&parent, &grandchild, &resumed, &children[0], &children[2], &children[3]] {
        sandbox.kill().await.unwrap();
    }
}

/// A process that waits, in memory that both forks share, and then draws random numbers in many ways.
const WAITER: &str = r"
import os, random, socket, time, uuid
random.seed(7)
while not os.path.exists('/dev/shm/go'): time.sleep(0.02)
print(random.random(), uuid.uuid4(), os.urandom(8).hex(), os.getrandom(8).hex(), socket.gethostname())
";

#[tokio::test(flavor = "multi_thread")]
async fn two_forks_share_memory_and_nothing_that_must_be_unique() {
    vm_test_or_return!();
    let (_host, parent) = common::sandbox().await;
    parent.write_file("/home/user/waiter.py", WAITER).await.unwrap();
    run(&parent, "head -c 3000000 /dev/urandom > /dev/shm/shared; nohup python3 waiter.py > drawn 2>&1 & sleep 1")
        .await;
    let children = all(parent.fork(2).await.unwrap()).await;
    let tokens: HashSet<_> = children.iter().chain([&parent]).map(|sandbox| sandbox.agent_token().unwrap()).collect();
    assert_eq!(tokens.len(), 3);

    let ask = "sha256sum < /dev/shm/shared; head -c 16 /dev/urandom | xxd -p 2>/dev/null || head -c 16 /dev/urandom | base64; \
        python3 -c 'import uuid; print(uuid.uuid4())'; cat /etc/machine-id; hostname; \
        touch /dev/shm/go; until [ -s drawn ]; do sleep 0.05; done; cat drawn; date +%s";
    let mut answers = Vec::new();
    for sandbox in [&children[0], &children[1], &parent] {
        answers.push(run(sandbox, ask).await);
    }
    let lines: Vec<Vec<&str>> = answers.iter().map(|answer| answer.lines().collect()).collect();
    let distinct = |line: usize| lines.iter().map(|lines| lines[line]).collect::<HashSet<_>>().len();
    assert_eq!(distinct(0), 1, "the shared memory: {answers:?}");
    for unique in 1..=4 {
        assert_eq!(distinct(unique), 3, "line {unique}: {answers:?}");
    }
    assert_eq!(lines[0][4], children[0].id().as_str());
    let drawn: Vec<Vec<&str>> = lines.iter().map(|lines| lines[5].split(' ').collect()).collect();
    assert_eq!(drawn[0][0], drawn[1][0], "Python's own generator is in memory, and memory is the same");
    for unique in 1..=4 {
        assert_eq!(drawn.iter().map(|words| words[unique]).collect::<HashSet<_>>().len(), 3, "{drawn:?}");
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for lines in &lines {
        let theirs: u64 = lines[6].parse().unwrap();
        assert!(theirs.abs_diff(now) < 20, "the guest's clock is at {theirs}, the host's at {now}");
    }
    for sandbox in [&children[0], &children[1], &parent] {
        sandbox.kill().await.unwrap();
    }
}

/// Writes a number to each page of as many MiB as it is told, in turn, then the next number. At any one instant the pages hold a number up to
/// some page, and the number before from there on.
const WRITER: &str = r"
import mmap, struct, sys
size = int(sys.argv[1]) << 20
f = open('/dev/shm/pages', 'w+b'); f.truncate(size)
m = mmap.mmap(f.fileno(), size)
n = 0
while True:
    n += 1
    b = struct.pack('<Q', n)
    for at in range(0, size, 4096): m[at:at + 8] = b
    if n == 1: print('ready', flush=True)
";
/// Stops the writer, and says whether that holds.
const CHECK: &str = r"
import os, struct, subprocess, sys
subprocess.run(['pkill', '-STOP', '-f', 'writer.py'], check=True)
data = open('/dev/shm/pages', 'rb').read()
numbers = [struct.unpack_from('<Q', data, at)[0] for at in range(0, len(data), 4096)]
steps = [(i, a, b) for i, (a, b) in enumerate(zip(numbers, numbers[1:])) if a != b]
print('one instant' if len(steps) <= 1 and all(a == b + 1 for _, a, b in steps) else f'torn: {steps[:5]} of {len(steps)}')
";

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_under_hard_writing_is_the_image_of_one_instant() {
    vm_test_or_return!();
    let (host, parent) = common::sandbox().await;
    // On a slow machine each guest brings each page in anew, and three guests at once are given up as unresponsive.
    let mib = if std::env::var_os("WRENN_TIMEOUT_FACTOR").is_some() { 16 } else { 64 };
    parent.write_file("/home/user/writer.py", WRITER).await.unwrap();
    parent.write_file("/home/user/check.py", CHECK).await.unwrap();
    let start = format!("nohup python3 writer.py {mib} > out 2>&1 & until grep -q ready out; do sleep 0.1; done");
    run(&parent, &start).await;
    let mut held_bytes = 0;
    for round in 0..4 {
        let children = all(parent.fork(2).await.unwrap()).await;
        let report = parent.save_report().await.unwrap().unwrap();
        println!("round {round}: {report:?}");
        held_bytes += report.held_bytes;
        for child in children {
            assert_eq!(run(&child, "python3 check.py").await, "one instant", "round {round}");
            child.kill().await.unwrap();
        }
    }
    // Where nobody but the VMM knows what was written, it is copied in the stop.
    if matches!(host.tracking(), Tracking::Async | Tracking::Sync) {
        assert!(held_bytes > mib << 18, "memory was copied while the writer ran on, but only {held_bytes} bytes of it");
    }
    let paused = parent.pause().await.unwrap();
    let resumed = paused.resume().await.unwrap();
    assert_eq!(run(&resumed, "python3 check.py").await, "one instant");
    resumed.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_a_template_that_sandboxes_come_from() {
    vm_test_or_return!();
    let (host, sandbox) = common::sandbox().await;
    run(&sandbox, "echo warm > /home/user/cache").await;
    let name = format!("test-{}", sandbox.id());
    let template = sandbox.snapshot(&name).await.unwrap();
    assert_eq!(template.memory_mib(), Some(512));
    assert!(matches!(sandbox.snapshot(&name).await, Err(Error::AlreadyExists { .. })), "the name is taken");
    assert!(matches!(sandbox.snapshot("base").await, Err(Error::AlreadyExists { .. })), "the name is an image's");
    assert_eq!(run(&sandbox, "cat cache").await, "warm");
    sandbox.kill().await.unwrap();

    let (first, second) = tokio::join!(Sandbox::create(&host, &name), Sandbox::create(&host, &name));
    let (first, second) = (first.unwrap(), second.unwrap());
    run(&first, "echo changed > cache").await;
    assert_eq!(run(&second, "cat cache").await, "warm");
    let locked = Sandbox::builder(&host, &name).memory_mib(1024).create().await;
    assert!(matches!(locked, Err(Error::InvalidInput { .. })), "{locked:?}");

    // Sandboxes outlive the name that they came from.
    host.remove_template(&name).await.unwrap();
    assert!(matches!(Sandbox::create(&host, &name).await, Err(Error::NotFound { .. })));
    let second = second.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&second, "cat cache").await, "warm");
    first.kill().await.unwrap();
    second.kill().await.unwrap();
}
