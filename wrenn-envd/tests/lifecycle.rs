//! A guest hears of its freeze, its thaw and its restore, and so do its clients.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{Agent, cgroup::Cgroup, is_alive, loop_mount::LoopMount};
use tokio::net::TcpStream;
use wrenn_envd::{EventsResponse, GuestEventKind};

fn hook(directory: &Path, moment: &str, name: &str, lines: &str) {
    let place = directory.join(moment);
    fs::create_dir_all(&place).expect("a directory");
    let path = place.join(name);
    fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
}

fn restored(event: &str) -> String {
    format!(r#"{{"entropy":"{}","event":"{event}"}}"#, STANDARD.encode([7; 64]))
}

async fn post(agent: &Agent, route: &str, body: String) -> StatusCode {
    agent.call("POST", route, &[("content-type", "application/json")], body).await.status()
}

async fn events(agent: &Agent, after: u64) -> EventsResponse {
    let answer = agent.call("GET", &format!("/events?after={after}"), &[], "").await;
    serde_json::from_slice(answer.body()).expect("events")
}

async fn events_by_http2(agent: &Agent, after: u64) -> EventsResponse {
    let stream = TokioIo::new(TcpStream::connect(agent.address).await.expect("the agent listens"));
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let uri = format!("http://guest/events?after={after}");
    let request = Request::get(uri).body(Empty::<Bytes>::new()).expect("a request");
    let body = sender.send_request(request).await.expect("an answer").into_body();
    serde_json::from_slice(&body.collect().await.expect("a whole answer").to_bytes()).expect("events")
}

#[tokio::test]
async fn hooks_run_in_order_and_with_the_event() {
    let test = "hooks_run_in_order_and_with_the_event";
    let Some(cgroup) = Cgroup::make(test) else { return };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let say = |name: &str| format!("echo {name} $WRENN_EVENT >>{}; echo said; exit 1", log.display());
    for (moment, name) in [
        ("before-freeze.d", "20-second"),
        ("before-freeze.d", "10-first"),
        ("before-thaw.d", "thaw"),
        ("before-thaw.d", ".hidden"),
        ("before-thaw.d", "saved~"),
    ] {
        hook(directory.path(), moment, name, &say(name));
    }
    fs::write(directory.path().join("before-thaw.d/readme"), "no program").unwrap();
    let [option, group] = cgroup.option();
    let agent = Agent::start_with(&[option, group, "--hooks", directory.path().to_str().unwrap()]);
    for route in ["/freeze", "/unfreeze", "/unfreeze", "/freeze"] {
        assert_eq!(post(&agent, route, String::new()).await, StatusCode::NO_CONTENT);
    }
    assert_eq!(post(&agent, "/init", restored("forked")).await, StatusCode::NO_CONTENT);
    let expected =
        "10-first frozen\n20-second frozen\nthaw continued\n10-first frozen\n20-second frozen\nthaw forked\n";
    assert_eq!(fs::read_to_string(log).unwrap(), expected);
    assert_eq!(agent.shell("echo up").await.unwrap().stdout_utf8(), "up\n", "a hook that fails stops nothing");
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    hook(directory.path(), "before-thaw.d", "hang", &format!("sleep 60 & echo $! $$ >{}; wait", pids.display()));
    let agent = Agent::start_with(&["--hooks", directory.path().to_str().unwrap()]);
    let begun = Instant::now();
    assert_eq!(post(&agent, "/init", restored("resumed")).await, StatusCode::NO_CONTENT);
    assert!((4..9).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let pids = fs::read_to_string(pids).unwrap();
    support::eventually("its death", || !pids.split_whitespace().any(is_alive)).await;
}

#[tokio::test]
async fn hooks_that_there_is_no_time_for_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ran");
    for name in ["10-hang", "20-hang"] {
        hook(directory.path(), "before-thaw.d", name, "exec sleep 60");
    }
    for name in ["30-late", "40-late"] {
        hook(directory.path(), "before-thaw.d", name, &format!("echo >{}", file.display()));
    }
    let agent = Agent::start_with(&["--hooks", directory.path().to_str().unwrap()]);
    let begun = Instant::now();
    assert_eq!(post(&agent, "/init", restored("resumed")).await, StatusCode::NO_CONTENT);
    assert!((9..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let said = agent.said();
    assert!(said.contains("30-late: it is left out") && said.contains("40-late: it is left out"), "{said}");
    assert!(!file.exists());
}

#[tokio::test]
async fn a_hook_may_leave_something_running() {
    let directory = tempfile::tempdir().unwrap();
    hook(directory.path(), "before-thaw.d", "leave", "sleep 3 & exit 0");
    let agent = Agent::start_with(&["--hooks", directory.path().to_str().unwrap()]);
    let begun = Instant::now();
    post(&agent, "/init", restored("resumed")).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn clients_are_told_of_every_restore_even_late() {
    let agent = Agent::start();
    let waiting = async { futures::join!(events(&agent, 0), events_by_http2(&agent, 0)) };
    let restoring = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        post(&agent, "/init", r#"{"envVars":{}}"#.to_owned()).await;
        assert_eq!(post(&agent, "/init", restored("created")).await, StatusCode::NO_CONTENT);
    };
    // The restore closes the question's connection, and not before the question is answered.
    let ((one, other), ()) = futures::join!(waiting, restoring);
    for told in [one, other] {
        assert_eq!(told.events.iter().map(|event| event.event).collect::<Vec<_>>(), [GuestEventKind::Created]);
    }
    assert_eq!(post(&agent, "/init", restored("forked")).await, StatusCode::NO_CONTENT);
    let seen = events(&agent, 0).await.events;
    let kinds: Vec<_> = seen.iter().map(|event| (event.number, event.event)).collect();
    assert_eq!(kinds, [(1, GuestEventKind::Created), (2, GuestEventKind::Forked)]);
    assert!(seen[0].timestamp <= seen[1].timestamp);
    assert_eq!(events(&agent, 1).await.events.len(), 1);
    assert_eq!(agent.call("GET", "/events?after=x", &[], "").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(post(&agent, "/init", restored("exploded")).await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn without_a_drive_or_a_group_nothing_is_frozen_and_the_answer_says_so() {
    let agent = Agent::start();
    for route in ["/freeze", "/fsfreeze", "/fsthaw"] {
        let answer = agent.call("POST", route, &[], "").await;
        assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED, "{route}");
        assert!(String::from_utf8_lossy(answer.body()).contains("there is no"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_frozen_drive_makes_writers_wait_until_it_is_thawed_or_restored() {
    let test = "a_frozen_drive_makes_writers_wait_until_it_is_thawed_or_restored";
    let Some(drive) = LoopMount::make(test) else { return };
    {
        let agent = Agent::start_with(&["--drive", drive.path().to_str().unwrap()]);
        for (route, body) in [("/fsthaw", String::new()), ("/init", restored("resumed"))] {
            assert_eq!(post(&agent, "/fsfreeze", String::new()).await, StatusCode::NO_CONTENT);
            assert_eq!(post(&agent, "/fsfreeze", String::new()).await, StatusCode::NO_CONTENT);
            let line = format!("echo x >{}", drive.path().join("file").display());
            let mut writing = Box::pin(agent.shell(&line));
            assert!(tokio::time::timeout(Duration::from_millis(500), &mut writing).await.is_err(), "the writer waits");
            drop(writing);
            assert_eq!(post(&agent, route, body).await, StatusCode::NO_CONTENT);
            let file = drive.path().join("file");
            support::eventually("the writing", || fs::read_to_string(&file).is_ok_and(|text| text == "x\n")).await;
            fs::remove_file(file).unwrap();
        }
    }
}

/// Uploads that wait for the drive hold every thread that waits for disks, and the thaw comes all the same.
#[tokio::test]
async fn a_drive_is_thawed_however_many_uploads_wait_for_it() {
    let Some(drive) = LoopMount::make("a_drive_is_thawed_however_many_uploads_wait_for_it") else { return };
    {
        let agent = Agent::start_with(&["--drive", drive.path().to_str().unwrap()]);
        // An agent whose threads stand in the kernel cannot be ended.
        let _thaw = drive.thaw_on_drop();
        for (route, body) in [("/fsthaw", String::new()), ("/init", restored("resumed"))] {
            assert_eq!(post(&agent, "/fsfreeze", String::new()).await, StatusCode::NO_CONTENT);
            let uploads = (0..40).map(|number| {
                let route = format!("/files?path={}/file{number}", drive.path().display());
                let agent = &agent;
                async move {
                    let kind = [("content-type", "application/octet-stream")];
                    agent.call("POST", &route, &kind, vec![b'x'; 300_000]).await.status()
                }
            });
            let mut uploads = Box::pin(futures::future::join_all(uploads));
            let waited = tokio::time::timeout(Duration::from_secs(1), &mut uploads).await;
            assert!(waited.is_err(), "the writers wait");
            let thawed = tokio::time::timeout(Duration::from_secs(5), post(&agent, route, body)).await;
            assert_eq!(thawed.expect("the thaw waits for nobody"), StatusCode::NO_CONTENT);
            // A restore closes their connections.
            if route == "/fsthaw" {
                let done = tokio::time::timeout(Duration::from_secs(20), uploads).await.expect("the uploads go on");
                assert!(done.iter().all(|status| *status == StatusCode::OK), "{done:?}");
            }
        }
    }
}
