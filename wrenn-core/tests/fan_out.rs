//! Many sandboxes at once: each is handed over when it is ready, and what becomes of one is no other's concern. One test at a
//! time: each counts what this process has.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::run;
use futures::{Stream as _, StreamExt as _};
use tokio::sync::Mutex;
use wrenn_core::{Error, Host, Running, Sandbox, SandboxState, Step};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

const COUNT: usize = 8;

/// A host where two start at once, and how many have begun to. The one with the number `failing`, from 1 on, fails.
async fn host(failing: usize) -> (Host, Arc<AtomicUsize>) {
    let begun = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&begun);
    let host = Host::builder().starts_at_once(2).on_step(move |step| {
        let is_failing = step == Step::Machine && counted.fetch_add(1, Ordering::Relaxed) + 1 == failing;
        if is_failing { Err(std::io::Error::other("injected")) } else { Ok(()) }
    });
    (host.open().await.unwrap(), begun)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_child_comes_when_it_is_ready_and_none_needs_its_parent() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let (host, begun) = host(0).await;
    let parent = Sandbox::create(&host, "base").await.unwrap();
    run(&parent, "echo parent > /home/user/name").await;
    begun.store(0, Ordering::Relaxed);

    let mut children = parent.fork_stream(COUNT).await.unwrap();
    assert_eq!(children.left(), COUNT);
    let first = children.next().await.unwrap().unwrap();
    let begun = begun.load(Ordering::Relaxed);
    assert!(begun < COUNT, "the first came when {begun} had begun to start");
    parent.kill().await.unwrap();
    assert_eq!(children.size_hint(), (COUNT - 1, Some(COUNT - 1)));
    let mut all = vec![first];
    all.extend(children.map(Result::unwrap).collect::<Vec<_>>().await);

    let mut names = HashSet::new();
    for child in &all {
        let name = run(child, "cat /home/user/name /etc/machine-id; hostname").await;
        let [written, machine, host] = name.lines().collect::<Vec<_>>()[..] else { panic!("{name}") };
        assert_eq!((written, host), ("parent", child.id().as_str()));
        names.insert(machine.to_owned());
    }
    assert_eq!(names.len(), COUNT);
    for child in all {
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_is_one_of_many() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let (host, _) = host(3).await;
    let many = Sandbox::builder(&host, "base").label("of", "many").create_many(COUNT).await.unwrap();
    let (good, bad): (Vec<_>, Vec<_>) = many.collect::<Vec<_>>().await.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (COUNT - 1, 1));
    assert!(matches!(&bad[0], Err(Error::Failed { .. })), "{bad:?}");
    for sandbox in good.into_iter().map(Result::unwrap) {
        assert_eq!(sandbox.info().labels["of"], "many");
        assert_eq!(run(&sandbox, "hostname").await, sandbox.id().as_str());
        sandbox.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_keeps_what_it_has_handed_over_alone() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let (host, _) = host(0).await;
    let mut many = Sandbox::builder(&host, "base").create_many(COUNT).await.unwrap();
    let taken = many.next().await.unwrap().unwrap();
    drop(many);
    only(&[&taken]).await;
    assert_eq!(run(&taken, "hostname").await, taken.id().as_str());
    taken.kill().await.unwrap();
    // Whoever comes next has a turn.
    Sandbox::create(&host, "base").await.unwrap().kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_shut_down_starts_no_more_of_them() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let (host, _) = host(0).await;
    let mut many = Sandbox::builder(&host, "base").create_many(COUNT).await.unwrap();
    let first = many.next().await.unwrap().unwrap();
    assert!(host.shutdown(Running::Kill).await.is_empty());
    assert_eq!(first.state(), SandboxState::Ended);
    let rest: Vec<_> = many.collect().await;
    assert_eq!(rest.len(), COUNT - 1);
    assert!(rest.iter().any(Result::is_err), "all had started: {rest:?}");
    for one in rest {
        match one {
            Ok(sandbox) => assert_eq!(sandbox.state(), SandboxState::Ended),
            Err(error) => assert!(matches!(error, Error::Host { .. }), "{error:?}"),
        }
    }
    only(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_nobody_can_want_is_refused() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let (host, _) = host(0).await;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    for count in [0, 1001, usize::MAX] {
        let refused = [
            sandbox.fork_stream(count).await.unwrap_err(),
            sandbox.fork(count).await.unwrap_err(),
            Sandbox::builder(&host, "base").create_many(count).await.unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
            assert!(error.to_string().contains("ask for 1 to 1000"), "{error}");
        }
    }
    assert!(sandbox.save_report().await.unwrap().is_none(), "nothing was captured");
    sandbox.kill().await.unwrap();
}

/// Waits until this process runs these sandboxes alone, and no thread of another is left.
async fn only(sandboxes: &[&Sandbox]) {
    let mut expected = Vec::new();
    for sandbox in sandboxes {
        expected.push(sandbox.vmm_pid().await.unwrap());
    }
    let threads = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        names.filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok())
    };
    for _ in 0..500 {
        let vm_threads = threads().filter(|name| name.starts_with("wrenn-vm")).count();
        if common::own_vmms() == expected && vm_threads == expected.len() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?} are left, and not {expected:?}", common::own_vmms());
}
