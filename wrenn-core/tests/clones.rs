//! Sandboxes of one template share its memory, and nothing that any of them has written.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::run;
use wrenn_core::{Paging, Sandbox, Tracking};

async fn paging(sandbox: &Sandbox) -> Paging {
    sandbox.restore_report().await.unwrap().paging
}

/// Fills a part of the guest's memory with what is its own, and returns what tells that it is still there.
async fn write(sandbox: &Sandbox) -> String {
    run(sandbox, "head -c 12000000 /dev/urandom > /dev/shm/own; md5sum < /dev/shm/own").await
}

async fn check(sandbox: &Sandbox, own: &str) {
    assert_eq!(run(sandbox, "md5sum < /dev/shm/own").await, own);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_that_live_at_the_same_time_share_memory_and_are_paused_and_forked_as_others() {
    const TEST: &str = "clones_that_live_at_the_same_time_share_memory";
    vm_test_or_return!();
    let dir = common::own_data_dir();
    // What the environment asks for is another matter.
    let host = common::own_host(&dir).paging(Paging::Lazy).open().await.unwrap();
    if host.tracking() != Tracking::Async {
        return common::skip(TEST, &"QEMU's guests are not tracked asynchronously here");
    }
    let mut clones = Vec::new();
    for _ in 0..3 {
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        let own = write(&sandbox).await;
        clones.push((sandbox, own));
    }
    for ((sandbox, own), expected) in clones.iter().zip([Paging::Lazy, Paging::Mapped, Paging::Mapped]) {
        assert_eq!(paging(sandbox).await, expected);
        check(sandbox, own).await;
    }
    let [(first, _), (second, own), (third, own_of_third)] = clones.try_into().ok().unwrap();

    // A fork is of what the clone has, and its children share that.
    let mut children = Vec::new();
    for child in second.fork(3).await.unwrap() {
        children.push(child.unwrap());
    }
    let mut ways = Vec::new();
    for child in &children {
        check(child, &own).await;
        ways.push(paging(child).await);
    }
    ways.sort_by_key(|paging| *paging == Paging::Mapped);
    assert_eq!(ways, [Paging::Lazy, Paging::Mapped, Paging::Mapped]);
    let own_of_child = write(&children[0]).await;
    check(&children[1], &own).await;
    check(&second, &own).await;

    // Twice, so that what was written since the last time is told from what was written before.
    let snapshot = second.snapshot("of-a-clone").await.unwrap();
    let later = write(&second).await;
    let second = second.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(paging(&second).await, Paging::Lazy, "it is the only one of its pause");
    check(&second, &later).await;
    let child = children.remove(0).pause().await.unwrap().resume().await.unwrap();
    check(&child, &own_of_child).await;
    let of_snapshot = Sandbox::create(&host, snapshot.name().as_str()).await.unwrap();
    check(&of_snapshot, &own).await;

    // One writes all that it has, and another ends; the third has what it had.
    run(&first, "head -c 200000000 /dev/zero | tr '\\0' x > /dev/shm/all").await;
    first.kill().await.unwrap();
    check(&third, &own_of_third).await;
    for sandbox in children.into_iter().chain([second, third, child, of_snapshot]) {
        sandbox.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_always_shares_does_so_from_the_first_one_on() {
    vm_test_or_return!();
    let dir = common::own_data_dir();
    let host = match common::own_host(&dir).paging(Paging::Mapped).open().await {
        Ok(host) => host,
        Err(error) => return common::skip("a_host_that_always_shares_does_so_from_the_first_one_on", &error),
    };
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    assert_eq!(paging(&sandbox).await, Paging::Mapped);
    let own = write(&sandbox).await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    assert_eq!(paging(&sandbox).await, Paging::Mapped);
    check(&sandbox, &own).await;
    sandbox.kill().await.unwrap();
}
