//! What a process leaves running goes on as it would after a shell's end.

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::ErrorCode;
use hyper::StatusCode;
use support::{Agent, eventually, session::Session, start};
use tokio::time::timeout;
use wrenn_envd::proto::process::process_input::Input;

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test]
async fn what_a_shell_leaves_running_may_go_on_writing() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ok");
    // `echo` of a shell whose pipe is broken ends it.
    let line = format!(
        "(sleep 1; echo tick; echo tick >&2; sleep 0.2; echo tick; echo ok >{}) & echo started",
        file.display()
    );
    let done = agent.shell(&line).await.unwrap();
    assert_eq!((done.stdout_utf8().as_str(), done.exit_code()), ("started\n", 0));
    eventually("the background process's end", || text(&file) == "ok\n").await;
}

#[tokio::test]
async fn what_a_hook_leaves_running_may_go_on_writing() {
    let directory = tempfile::tempdir().unwrap();
    let (file, hooks) = (directory.path().join("ok"), directory.path().join("before-thaw.d"));
    fs::create_dir(&hooks).unwrap();
    let hook = hooks.join("leave");
    fs::write(&hook, format!("#!/bin/sh\n(sleep 1; echo tick; echo ok >{}) &\nexit 0\n", file.display())).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let agent = Agent::start_with(&["--hooks", directory.path().to_str().unwrap()]);
    let body = format!(r#"{{"entropy":"{}"}}"#, STANDARD.encode([7; 64]));
    let answer = agent.call("POST", "/init", &[("content-type", "application/json")], body).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    eventually("the background process's end", || text(&file) == "ok\n").await;
}

/// Writers that never end cost a bounded amount, and their pipes go with them.
#[tokio::test]
async fn what_nobody_reads_any_more_takes_little() {
    let agent = Agent::start();
    let open = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let resident_kib = || -> u64 {
        let status = text(Path::new(&format!("/proc/{}/status", agent.pid())));
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    agent.shell("true").await.unwrap();
    let (open_before, resident_before) = (open(), resident_kib());
    let directory = tempfile::tempdir().unwrap();
    for number in 0..20 {
        let file = directory.path().join(number.to_string());
        let line =
            format!("(sleep 0.6; timeout 4 head -c 100000000000 /dev/zero; echo over >{}) & exit 0", file.display());
        agent.shell(&line).await.unwrap();
    }
    // All of them write, and what was written before their shells' ends is not much.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let resident = resident_kib();
    println!("measured: {resident_before} KiB before, {resident} KiB with 20 that write on");
    assert!(resident < resident_before + (6 << 10), "{resident_before} KiB, then {resident} KiB");
    // A flood that nobody reads leaves the agent to others.
    let answer = timeout(Duration::from_secs(5), agent.shell("echo up")).await.expect("it answers others");
    assert_eq!(answer.unwrap().stdout_utf8(), "up\n");
    for number in 0..20 {
        let file = directory.path().join(number.to_string());
        eventually("the end of a writer", || text(&file) == "over\n").await;
    }
    eventually("no more descriptors than before", || open() <= open_before + 2).await;
}

/// A descendant holds the pipe that input goes to, and does not read it.
#[tokio::test]
async fn input_to_a_process_that_has_ended_is_refused_while_it_is_written() {
    let agent = Agent::start();
    let mut request = start("sh", &["-c", "exec 3<&0; sleep 12 <&3 >/dev/null 2>&1 & sleep 1"]);
    request.stdin = Some(true);
    let session = Session::start(&agent, request).await.unwrap();
    let sent = timeout(Duration::from_secs(10), session.input(Input::Stdin(vec![b'x'; 1 << 20]))).await;
    let refused = sent.expect("nobody waits for a reader that has ended").unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition, "{refused:?}");
    let done = session.finish().await.unwrap();
    assert_eq!(done.exit_code(), 0);
}
