//! What the agent costs its guest: memory while files pass, and time at its start.
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
