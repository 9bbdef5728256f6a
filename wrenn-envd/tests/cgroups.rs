//! Whatever a process does to get away, its time-out, its kill and a freeze reach it.

mod support;

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{ErrorCode, client::CallOptions};
use hyper::StatusCode;
use support::{Agent, cgroup::Cgroup, eventually, is_alive, session::Session, start};
use wrenn_envd::proto::process::{PTY, Signal};

/// Starts a daemon as daemons start: two forks, a session of its own, and no open streams.
fn daemonize(pids: &std::path::Path) -> String {
    let daemon = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 60", pids.display());
    format!("(setsid sh -c '{daemon}' </dev/null >/dev/null 2>&1 &) ; sleep 60")
}

fn timeout_ms(milliseconds: u32) -> CallOptions {
    CallOptions::default().with_header("connect-timeout-ms", milliseconds.to_string())
}

#[tokio::test]
async fn a_time_out_kills_a_daemon_that_has_left_its_session() {
    let Some(cgroup) = Cgroup::make("a_time_out_kills_a_daemon_that_has_left_its_session") else { return };
    let agent = Agent::start_with(&cgroup.option());
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pid");
    let error = agent.run(start("sh", &["-c", &daemonize(&pids)]), timeout_ms(700)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let pid = std::fs::read_to_string(pids).unwrap();
    eventually("the daemon's death", || !is_alive(pid.trim())).await;
    eventually("nobody in a group", || cgroup.occupied_leaves().is_empty()).await;
}

#[tokio::test]
async fn a_kill_reaches_all_that_a_process_has_started() {
    let Some(cgroup) = Cgroup::make("a_kill_reaches_all_that_a_process_has_started") else { return };
    let agent = Agent::start_with(&cgroup.option());
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pid");
    let session = Session::start(&agent, start("sh", &["-c", &daemonize(&pids)])).await.unwrap();
    eventually("the daemon", || pids.exists()).await;
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
    assert_eq!(session.finish().await.unwrap().end.unwrap().status, "signal: killed");
    let pid = std::fs::read_to_string(pids).unwrap();
    eventually("the daemon's death", || !is_alive(pid.trim())).await;
}

#[tokio::test]
async fn without_groups_a_time_out_kills_sessions_that_branch_off() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pid");
    let daemon = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 60", pids.display());
    let line = format!("setsid -w sh -c '{daemon}' & wait");
    let error = agent.run(start("sh", &["-c", &line]), timeout_ms(700)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let pid = std::fs::read_to_string(pids).unwrap();
    eventually("its death", || !is_alive(pid.trim())).await;
}

#[tokio::test]
async fn a_group_is_free_again_with_the_last_of_its_processes() {
    let Some(cgroup) = Cgroup::make("a_group_is_free_again_with_the_last_of_its_processes") else { return };
    let agent = Agent::start_with(&cgroup.option());
    agent.shell("true").await.unwrap();
    assert!(agent.run(start("/etc/passwd", &[]), CallOptions::default()).await.is_err());
    for _ in 0..20 {
        agent.shell("true").await.unwrap();
    }
    eventually("nobody in a group", || cgroup.occupied_leaves().is_empty()).await;
    // A command may begin before the group of the last one is free.
    assert!(cgroup.leaves().len() <= 2, "{:?}", cgroup.leaves());
    let with_background = agent.shell("grep ^0: /proc/self/cgroup; sleep 0.5 >/dev/null 2>&1 &").await.unwrap();
    let beside_it = agent.shell("grep ^0: /proc/self/cgroup").await.unwrap();
    assert_ne!(with_background.stdout_utf8(), beside_it.stdout_utf8());
    assert_eq!(cgroup.occupied_leaves().len(), 1);
    eventually("nobody in a group", || cgroup.occupied_leaves().is_empty()).await;
}

#[tokio::test]
async fn the_groups_of_many_processes_are_not_kept() {
    let Some(cgroup) = Cgroup::make("the_groups_of_many_processes_are_not_kept") else { return };
    let agent = Agent::start_with(&cgroup.option());
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(Session::start(&agent, start("sleep", &["60"])).await.unwrap());
    }
    assert_eq!(cgroup.occupied_leaves().len(), 20);
    for session in sessions {
        session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
        session.finish().await.unwrap();
    }
    eventually("most groups removed", || cgroup.leaves().len() <= 8).await;
    assert_eq!(cgroup.occupied_leaves().len(), 0);
}

#[tokio::test]
async fn terminals_and_commands_have_groups_of_their_own() {
    let Some(cgroup) = Cgroup::make("terminals_and_commands_have_groups_of_their_own") else { return };
    let agent = Agent::start_with(&cgroup.option());
    let done = agent.shell("grep ^0: /proc/self/cgroup; cat /proc/self/oom_score_adj").await.unwrap();
    assert!(done.stdout_utf8().contains("/sandbox/user/p") && done.stdout_utf8().ends_with("\n100\n"), "{done:?}");
    let mut request = start("sh", &["-c", "grep ^0: /proc/self/cgroup"]);
    request.pty = PTY::default().into();
    let done = agent.run(request, CallOptions::default()).await.unwrap();
    assert!(String::from_utf8_lossy(&done.pty).contains("/sandbox/ptys/p"), "{done:?}");
}

#[tokio::test]
async fn a_freeze_stops_commands_and_terminals_and_a_thaw_continues_them() {
    let Some(cgroup) = Cgroup::make("a_freeze_stops_commands_and_terminals_and_a_thaw_continues_them") else { return };
    let agent = Agent::start_with(&cgroup.option());
    let mut request = start("sh", &["-c", "echo up; while :; do echo tick; sleep 0.05; done"]);
    let mut command = Session::start(&agent, request.clone()).await.unwrap();
    request.pty = PTY::default().into();
    let mut terminal = Session::start(&agent, request).await.unwrap();
    command.expect("tick").await;
    terminal.expect("tick").await;
    assert_eq!(agent.call("POST", "/freeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    for session in [&mut command, &mut terminal] {
        // What was written before the freeze may still come.
        while tokio::time::timeout(Duration::from_millis(400), session.next()).await.is_ok() {}
    }
    assert_eq!(agent.call("POST", "/unfreeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    assert!(command.next().await.unwrap() && terminal.next().await.unwrap());
    for session in [command, terminal] {
        session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
    }
}

#[tokio::test]
async fn a_start_waits_for_the_thaw_and_no_longer_than_its_time() {
    let Some(cgroup) = Cgroup::make("a_start_waits_for_the_thaw_and_no_longer_than_its_time") else { return };
    let agent = Agent::start_with(&cgroup.option());
    assert_eq!(agent.call("POST", "/freeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    let begun = Instant::now();
    let late = agent.run(start("true", &[]), timeout_ms(300)).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::DeadlineExceeded, "{late:?}");
    assert!((300..3000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let thawing = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(agent.call("POST", "/unfreeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    };
    let mut until_end = start("sh", &["-c", "echo up"]);
    until_end.until_end = Some(true);
    let (waited, waited_for_end, ()) =
        futures::join!(agent.shell("echo up"), agent.run(until_end, CallOptions::default()), thawing);
    for waited in [waited, waited_for_end] {
        assert_eq!(waited.unwrap().stdout_utf8(), "up\n");
    }
    // In each copy of a guest there is a copy of whoever waits: nobody's command runs in all of them.
    assert_eq!(agent.call("POST", "/freeze", &[], "").await.status(), StatusCode::NO_CONTENT);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ran");
    let restoring = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let body = format!(r#"{{"entropy":"{}","event":"forked"}}"#, STANDARD.encode([7; 64]));
        let answer = agent.call("POST", "/init", &[("content-type", "application/json")], body).await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    };
    let line = format!("touch {}", file.display());
    let (copied, ()) = futures::join!(agent.shell(&line), restoring);
    assert_eq!(copied.unwrap_err().code, ErrorCode::Unavailable);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!file.exists());
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n");
}
