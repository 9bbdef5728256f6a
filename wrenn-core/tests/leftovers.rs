//! After a kill, a failure or a crash there is no process, descriptor, thread or file left. One test at a time: each
//! counts what this process has.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use common::run;
use tokio::sync::Mutex;
use wrenn_core::{Error, Host, Sandbox, SandboxFilter, Step};

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// What this process holds of the kernel that a sandbox could have left.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    vmms: Vec<u32>,
    /// Taps, namespaces, memfds, pidfds, userfaultfds and drives, by what `/proc/self/fd` calls them.
    descriptors: Vec<String>,
    vm_threads: usize,
    files: Vec<std::path::PathBuf>,
}

impl Holdings {
    fn now(data_dir: &Path) -> Self {
        let fd = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(fd);
        let ours =
            ["/dev/net/tun", "net:", "memfd:wrenn", "anon_inode:[pidfd]", "anon_inode:[userfaultfd]", "(deleted)"];
        let names = links.map(|link| link.to_string_lossy().into_owned());
        let mut descriptors: Vec<String> = names.filter(|name| ours.iter().any(|part| name.contains(part))).collect();
        descriptors.sort();
        let thread = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("comm")).ok();
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten().filter_map(thread);
        Self {
            vmms: common::own_vmms(),
            descriptors,
            vm_threads: threads.filter(|name| name.starts_with("wrenn-vm")).count(),
            files: common::files(data_dir),
        }
    }

    /// Waits for what ends a moment later than the call that ended it.
    async fn settled(data_dir: &Path, expected: &Self) -> Self {
        for _ in 0..250 {
            let now = Self::now(data_dir);
            if now == *expected {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        Self::now(data_dir)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_each_step_leaves_nothing() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = common::own_data_dir();
    let fail_at = std::sync::Arc::new(std::sync::Mutex::new(None::<Step>));
    let seen = std::sync::Arc::new(std::sync::Mutex::new(HashSet::new()));
    let (fail, record) = (fail_at.clone(), seen.clone());
    let host = common::own_host(&dir).slots(0).on_step(move |step| {
        record.lock().unwrap().insert(step);
        if *fail.lock().unwrap() == Some(step) { Err(std::io::Error::other("injected")) } else { Ok(()) }
    });
    let host = host.open().await.unwrap();

    // The boot can fail as well, and is then begun anew.
    *fail_at.lock().unwrap() = Some(Step::Boot);
    let before_boot = Holdings::now(dir.path());
    assert!(Sandbox::create(&host, "base").await.is_err());
    assert_eq!(Holdings::settled(dir.path(), &before_boot).await, before_boot);
    *fail_at.lock().unwrap() = None;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    sandbox.kill().await.unwrap();

    let before = Holdings::settled(dir.path(), &before_boot).await;
    for step in Step::RESTORE {
        *fail_at.lock().unwrap() = Some(step);
        let error = Sandbox::create(&host, "base").await.unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error:?}");
        assert_eq!(Holdings::settled(dir.path(), &before).await, before, "create, {step}");
    }
    *fail_at.lock().unwrap() = None;
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "echo kept > note").await;
    let paused = sandbox.pause().await.unwrap();
    let before = Holdings::settled(dir.path(), &before).await;
    for step in Step::RESTORE {
        *fail_at.lock().unwrap() = Some(step);
        let error = paused.resume().await.unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error:?}");
        assert_eq!(Holdings::settled(dir.path(), &before).await, before, "resume, {step}");
    }
    *fail_at.lock().unwrap() = None;
    // And the pause is none the worse for it.
    let sandbox = paused.resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat note").await, "kept");
    sandbox.kill().await.unwrap();
    assert!(Step::RESTORE.iter().all(|step| seen.lock().unwrap().contains(step)), "every step was reached");
}

/// The files, once none is being written: what a first restore touched is noted after its end.
async fn settled_files(data_dir: &Path) -> Vec<std::path::PathBuf> {
    for _ in 0..250 {
        let files = common::files(data_dir);
        if !files.iter().any(|file| file.extension().is_some_and(|end| end == "part")) {
            return files;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    panic!("a file is being written without end: {:?}", common::files(data_dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_pause_drop_and_cancel_leave_nothing() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = common::own_data_dir();
    let host = common::own_host(&dir).slots(0).open().await.unwrap();
    Sandbox::create(&host, "base").await.unwrap().kill().await.unwrap();
    let nothing = Holdings { vmms: vec![], descriptors: vec![], vm_threads: 0, files: settled_files(dir.path()).await };
    let empty = Holdings::settled(dir.path(), &nothing).await;
    assert_eq!(empty, nothing);

    for round in 0..3 {
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        let children = sandbox.fork(2).await.unwrap();
        assert_eq!(common::own_vmms().len(), 3);
        drop(children);
        let paused = sandbox.pause().await.unwrap();
        assert!(sandbox.exec("true").await.unwrap_err().to_string().contains("paused"));
        drop(paused.resume().await.unwrap());
        while paused.resume().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        while common::own_vmms().len() > 1 || host.sandboxes(&SandboxFilter::new()).await.unwrap().len() > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The handle from the loop was dropped at once, so the sandbox is on its way back to its pause.
        let deleted = async {
            loop {
                match paused.clone().delete().await {
                    Ok(()) => break,
                    Err(Error::InvalidState { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), deleted).await.unwrap();
        host.collect_garbage().await.unwrap();
        assert_eq!(Holdings::settled(dir.path(), &empty).await, empty, "round {round}");
    }

    // A create that is cancelled at a random point undoes itself.
    for delay_ms in [0, 5, 20, 40, 60, 80, 120, 200] {
        let create = Sandbox::create(&host, "base");
        let _ = tokio::time::timeout(Duration::from_millis(delay_ms), create).await;
        assert_eq!(Holdings::settled(dir.path(), &empty).await, empty, "cancelled after {delay_ms} ms");
    }
    // And so do many that are given up half-way.
    for taken in [0, 1, 3] {
        let mut many = Sandbox::builder(&host, "base").create_many(6).await.unwrap();
        for _ in 0..taken {
            many.next().await.unwrap().unwrap().kill().await.unwrap();
        }
        drop(many);
        assert_eq!(Holdings::settled(dir.path(), &empty).await, empty, "given up after {taken}");
    }
}

/// Not a test by itself: the program that `kill_9_of_the_program` starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn program_that_is_killed() {
    let Some(data_dir) = std::env::var_os("WRENN_TEST_DATA_DIR") else { return };
    let host = Host::open(&data_dir).await.unwrap();
    let sandbox = Sandbox::create(&host, "base").await.unwrap();
    run(&sandbox, "echo paused > state").await;
    let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
    run(&sandbox, "echo lost > state").await;
    let children = sandbox.fork(1).await.unwrap();
    let child = children[0].as_ref().unwrap();
    let report = format!("{} {} {}", sandbox.id(), sandbox.vmm_pid().await.unwrap(), child.vmm_pid().await.unwrap());
    std::fs::write(Path::new(&data_dir).join("report.tmp"), report).unwrap();
    std::fs::rename(Path::new(&data_dir).join("report.tmp"), Path::new(&data_dir).join("report")).unwrap();
    // Pauses that are cut anywhere: a generation half-written is one of the things to clean up.
    loop {
        run(&sandbox, "head -c 3000000 /dev/urandom > /dev/shm/x").await;
        drop(sandbox.fork(1).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_program_takes_its_vms_along_and_keeps_its_pauses() {
    vm_test_or_return!();
    let _alone = ONE_AT_A_TIME.lock().await;
    let dir = common::own_data_dir();
    let mut program = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_that_is_killed", "--nocapture"])
        .env("WRENN_TEST_DATA_DIR", dir.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let report = dir.path().join("report");
    for _ in 0..1200 {
        if report.exists() {
            break;
        }
        assert!(program.try_wait().unwrap().is_none(), "the program ended by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    program.start_kill().unwrap();
    program.wait().await.unwrap();
    let report = std::fs::read_to_string(report).unwrap();
    let words: Vec<&str> = report.split(' ').collect();
    for pid in &words[1..] {
        let pid: u32 = pid.parse().unwrap();
        for _ in 0..100 {
            if !common::is_alive(pid) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!common::is_alive(pid), "VMM {pid} outlived its program");
    }

    let host = Host::open(dir.path()).await.unwrap();
    let half_written = |path: &std::path::PathBuf| path.to_string_lossy().contains("tmp-");
    let left: Vec<_> = common::files(dir.path()).into_iter().filter(half_written).collect();
    assert!(left.is_empty(), "{left:?}");
    let id = words[0].parse().unwrap();
    let sandbox = host.paused(&id).await.unwrap().resume().await.unwrap();
    assert_eq!(run(&sandbox, "cat state").await, "paused");
    sandbox.kill().await.unwrap();
    host.collect_garbage().await.unwrap();
    let generations = std::fs::read_dir(dir.path().join("generations")).unwrap().count();
    assert_eq!(generations, 1, "the booted template's alone");
}
