//! What one command has started leaves the others their share of the guest.

mod common;

use std::time::{Duration, Instant};

use common::{run, sandbox};

/// A fork bomb whose first process has ended: no command's time-out ends it.
#[tokio::test]
async fn commands_and_a_pause_have_their_share_beside_a_fork_bomb() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    run(&sandbox, "bash -c 'bomb() { bomb | bomb & }; bomb' >/dev/null 2>&1 </dev/null & sleep 0.2").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let processes = sandbox.read_file("/sys/fs/cgroup/sandbox/pids.current").await.unwrap();
    let processes: u32 = String::from_utf8_lossy(&processes).trim().parse().unwrap();
    assert!(processes > 300, "{processes} processes are no bomb");
    for _ in 0..3 {
        let begun = Instant::now();
        let done = sandbox.command("echo").arg("up").timeout(Duration::from_secs(60)).output().await.unwrap();
        println!("measured: a command beside {processes} processes takes {:?}", begun.elapsed());
        assert_eq!(done.stdout_utf8(), "up\n");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "echo up").await, "up");
}
