//! What the agent costs its guest: memory while files pass, and time at its start. And what a guest costs that does nothing.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::{host, run, sandbox};
use wrenn_core::Sandbox;

/// The agent's memory, in KiB: now, and at most so far.
async fn resident(sandbox: &Sandbox) -> (u64, u64) {
    let text =
        run(sandbox, "awk '/VmRSS/ { now = $2 } /VmHWM/ { most = $2 } END { print now, most }' /proc/1/status").await;
    let (now, most) = text.split_once(' ').unwrap();
    (now.parse().unwrap(), most.parse().unwrap())
}

#[tokio::test]
async fn a_large_file_passes_in_constant_memory() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    let before = resident(&sandbox).await;
    // Nothing of it is a hole.
    let block: Vec<u8> = (0..1 << 20).map(|at: u32| u8::try_from(at % 251).unwrap()).collect();
    let contents = Bytes::from(block.repeat(256));
    sandbox.write_file("/var/tmp/large", contents.clone()).await.unwrap();
    let written = resident(&sandbox).await;
    assert!(sandbox.read_file("/var/tmp/large").await.unwrap() == contents);
    let read = resident(&sandbox).await;
    println!("measured: (now, most) KiB resident: {before:?}, after 256 MiB in {written:?}, and out {read:?}");
    for (now, most) in [written, read] {
        assert!(now < 8 << 10, "{now} KiB");
        assert!(most < 16 << 10, "{most} KiB at most");
    }
    sandbox.kill().await.unwrap();
}

#[tokio::test]
async fn the_agent_serves_soon_after_the_kernel_has_started_it() {
    vm_test_or_return!();
    let host = host().await;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    let log = sandbox.command("dmesg").user("root").output().await.unwrap().stdout_utf8();
    let at = |words: &str| -> f64 {
        let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("no {words:?} in {log}"));
        line.trim_start_matches('[').split(']').next().unwrap().trim().parse().unwrap()
    };
    let took = at("wrenn-envd: serving on") - at("Run /init as init process");
    println!(
        "measured: {:.1} ms from /init's exec to the agent's service, by {:?}",
        took * 1e3,
        host.probe().acceleration
    );
    // The emulated processor is slower by a factor that depends on what else the host does.
    let limit = if host.probe().acceleration == wrenn_core::Acceleration::Kvm { 0.02 } else { 2.0 };
    assert!(took < limit, "{took} s");
    sandbox.kill().await.unwrap();
}

/// A machine's first timer alone would wake its VMM up 36 times a second, and each list of the guest's sockets would be some
/// milliseconds of an emulated processor.
#[tokio::test]
async fn a_guest_that_does_nothing_hardly_wakes_its_vmm() {
    vm_test_or_return!();
    let (_host, sandbox) = sandbox().await;
    run(&sandbox, "true").await;
    let vmm = sandbox.vmm_pid().await.unwrap();
    let now = || {
        let tasks = std::fs::read_dir(format!("/proc/{vmm}/task")).unwrap();
        let spent = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap());
        // Nanoseconds on a processor.
        let spent: u64 = spent.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        let main = std::fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/schedstat")).unwrap();
        (spent, main.trim().rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    // The least of some: a guest has something to do now and then.
    let mut least = (f64::MAX, f64::MAX);
    for _ in 0..6 {
        let (began, before) = (std::time::Instant::now(), now());
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let (after, took) = (now(), began.elapsed().as_secs_f64());
        let wakes = f64::from(u32::try_from(after.1 - before.1).unwrap()) / took;
        let busy = std::time::Duration::from_nanos(after.0 - before.0).as_secs_f64() / took;
        least = (least.0.min(wakes), least.1.min(busy));
    }
    println!(
        "measured: the VMM's main loop wakes up {:.0} times a second, all of it takes {:.2} %",
        least.0,
        least.1 * 1e2
    );
    assert!(least.0 < 50.0, "{} times a second", least.0);
    sandbox.kill().await.unwrap();
}
