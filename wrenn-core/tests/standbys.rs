//! VMMs that stand by: guests that are restored in one are as any others, and none outlives its use.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::run;
use tokio::sync::Mutex;
use wrenn_core::{Host, NetworkPolicy, Running, Sandbox};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Waits until one stands by at least: how many do is a matter of how long ago the last starts were.
async fn one_stands_by(host: &Host) {
    let deadline = std::time::Instant::now() + common::patient(Duration::from_secs(60));
    while host.metrics().await.unwrap().standbys == 0 {
        assert!(std::time::Instant::now() < deadline, "none stands by");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the sandbox was made in a VMM that stood by.
async fn stood_by(sandbox: &Sandbox) -> bool {
    sandbox.restore_report().await.unwrap().phases.spawn.is_zero()
}

async fn ended(count: usize) {
    let deadline = std::time::Instant::now() + common::patient(Duration::from_secs(30));
    while common::own_vmms().len() != count {
        assert!(std::time::Instant::now() < deadline, "{:?} are left, and not {count}", common::own_vmms());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_a_resume_and_a_child_are_made_in_vmms_that_stood_by_and_are_as_others() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = common::own_data_dir();
    let host = common::own_host(&dir).standbys(3).open().await.unwrap();
    let first = Sandbox::create(&host, "base").await.unwrap();
    assert!(!stood_by(&first).await, "nobody has asked for one before");
    one_stands_by(&host).await;

    let closed = Sandbox::builder(&host, "base").network(NetworkPolicy::closed()).create().await.unwrap();
    assert!(stood_by(&closed).await);
    one_stands_by(&host).await;
    let hosts = [run(&first, "hostname").await, run(&closed, "hostname").await];
    assert_eq!(hosts, [first.id().to_string(), closed.id().to_string()]);
    // The policy is that of the create.
    assert!(common::get(&closed, "http://192.0.2.1/").await.is_err());
    assert!(closed.metrics().await.unwrap().network.refusals > 0);

    run(&closed, "echo kept > note; head -c 9000000 /dev/urandom > big; sync; md5sum big > sum").await;
    let paused = closed.pause().await.unwrap();
    let resumed = paused.resume().await.unwrap();
    assert!(stood_by(&resumed).await);
    assert_eq!(run(&resumed, "cat note; md5sum -c sum").await, "kept\nbig: OK");
    one_stands_by(&host).await;
    let mut ready_before = 0;
    for child in resumed.fork(3).await.unwrap() {
        let child = child.unwrap();
        ready_before += u32::from(stood_by(&child).await);
        assert_eq!(run(&child, "cat note; md5sum -c sum; hostname").await, format!("kept\nbig: OK\n{}", child.id()));
        child.kill().await.unwrap();
    }
    assert!(ready_before > 0, "no child was made in one that stood by");
    // One more round of what is written, since a drive that was made ahead is told of as others are.
    run(&resumed, "echo again > note; sync").await;
    let again = resumed.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(run(&again, "cat note; md5sum -c sum").await, "again\nbig: OK");
    again.kill().await.unwrap();
    first.kill().await.unwrap();
    host.shutdown(Running::Kill).await;
    ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_died_is_nobodys_and_another_machine_is_another_kind() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = common::own_data_dir();
    let host = common::own_host(&dir).standbys(2).open().await.unwrap();
    let first = Sandbox::create(&host, "base").await.unwrap();
    one_stands_by(&host).await;
    let of_first = first.vmm_pid().await.unwrap();
    for pid in common::own_vmms().into_iter().filter(|pid| *pid != of_first) {
        let process = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
        while std::fs::exists(format!("/proc/{pid}")).unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // One that is dead would fail it.
    let second = Sandbox::create(&host, "base").await.unwrap();
    assert_eq!(run(&second, "echo works").await, "works");
    one_stands_by(&host).await;
    let large = Sandbox::builder(&host, "base").memory_mib(640).create().await.unwrap();
    assert!(!stood_by(&large).await, "it has other memory");
    assert_eq!(run(&large, "echo works").await, "works");

    // With the last handle, and without a word, all of them go.
    drop((first, second, large, host));
    ended(0).await;
}
