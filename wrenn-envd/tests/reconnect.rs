//! A client that comes back misses nothing that is still held, and is told what is not.

mod support;

use std::time::Duration;

use connectrpc::{ErrorCode, client::CallOptions};
use support::{
    Agent, eventually, is_alive,
    session::{Session, by_pid, by_tag},
    start,
};
use wrenn_envd::proto::process::process_event::Event;
use wrenn_envd::proto::process::{ConnectRequest, ConnectResponse, ListRequest, Signal, StartRequest};

fn shell(line: &str) -> StartRequest {
    let mut request = start("sh", &["-c", line]);
    request.offsets = Some(true);
    request.tag = Some("job".to_owned());
    request
}

#[tokio::test]
async fn a_stream_goes_on_at_any_offset_however_often_it_breaks() {
    let agent = Agent::start();
    let line = "i=0; while [ $i -lt 3000 ]; do echo out-$i; echo err-$i >&2; i=$((i+1)); done; sleep 0.2; exit 5";
    let mut session = Session::start(&agent, shell(line)).await.unwrap();
    let pid = session.seen.pid;
    let (mut stdout, mut stderr, mut breaks) = (Vec::new(), Vec::new(), 0);
    let end = loop {
        // Two events, then the connection is lost.
        for _ in 0..2 {
            if session.seen.end.is_none() {
                session.next().await.unwrap();
            }
        }
        stdout.extend(std::mem::take(&mut session.seen.stdout));
        stderr.extend(std::mem::take(&mut session.seen.stderr));
        assert!(session.seen.lost.is_empty());
        if let Some(end) = session.seen.end.take() {
            break end;
        }
        breaks += 1;
        let offset = u64::try_from(stdout.len() + stderr.len()).unwrap();
        drop(session);
        session = Session::connect(&agent, by_pid(pid), Some(offset)).await.unwrap();
    };
    let lines = |name: &str| (0..3000).map(|i| format!("{name}-{i}\n")).collect::<String>();
    assert!(stdout == lines("out").as_bytes() && stderr == lines("err").as_bytes());
    assert_eq!((end.exit_code, end.offset), (5, Some(u64::try_from(stdout.len() + stderr.len()).unwrap())));
    assert!(breaks > 1, "{breaks}");
}

#[tokio::test]
async fn the_end_can_be_read_after_it_by_number_and_by_tag() {
    let agent = Agent::start();
    let session = Session::start(&agent, shell("echo early; sleep 0.2; echo late; exit 7")).await.unwrap();
    let pid = session.seen.pid;
    drop(session);
    eventually("the end", || !is_alive(&pid.to_string())).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for selector in [by_pid(pid), by_tag("job")] {
        let session = Session::connect(&agent, selector.clone(), Some(6)).await.unwrap();
        let seen = session.finish().await.unwrap();
        assert_eq!((seen.stdout_utf8().as_str(), seen.exit_code(), seen.pid), ("late\n", 7, pid));
        // E2B's clients expect a process that has ended to be gone.
        let gone = Session::connect(&agent, selector.clone(), None).await.err().unwrap();
        assert_eq!(gone.code, ErrorCode::NotFound);
        let beyond = Session::connect(&agent, selector, Some(100)).await.err().unwrap();
        assert_eq!(beyond.code, ErrorCode::OutOfRange);
    }
    assert!(agent.client().list(ListRequest::default()).await.unwrap().into_owned().processes.is_empty());
}

#[tokio::test]
async fn what_is_no_longer_held_is_named() {
    let agent = Agent::start();
    let session = Session::start(&agent, shell("sleep 0.2; yes | head -c 5000000; echo end")).await.unwrap();
    let pid = session.seen.pid;
    drop(session);
    eventually("the end", || !is_alive(&pid.to_string())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = Session::connect(&agent, by_pid(pid), Some(1000)).await.unwrap().finish().await.unwrap();
    let [(1000, bytes)] = seen.lost[..] else { panic!("{:?}", seen.lost) };
    assert_eq!(1000 + bytes + u64::try_from(seen.stdout.len()).unwrap(), 5_000_004);
    assert!(seen.stdout.len() > 900_000 && seen.stdout.ends_with(b"y\nend\n"));
}

#[tokio::test]
async fn a_client_that_does_not_ask_sees_no_offsets() {
    let agent = Agent::start();
    let mut request = shell("echo x");
    request.offsets = None;
    let end = agent.run(request, CallOptions::default()).await.unwrap().end.unwrap();
    assert_eq!(end.offset, None);
    let end = agent.run(shell("echo x"), CallOptions::default()).await.unwrap().end.unwrap();
    assert_eq!(end.offset, Some(2));
}

#[tokio::test]
async fn a_client_that_counts_is_told_where_its_stream_begins() {
    let agent = Agent::start();
    let mut session = Session::start(&agent, shell("echo early; sleep 30; echo late")).await.unwrap();
    session.next().await.unwrap();
    assert_eq!(session.seen.stdout, b"early\n");
    let pid = session.seen.pid;
    let connect = async |offsets| {
        let request = ConnectRequest { process: by_pid(pid).into(), offsets, ..Default::default() };
        let mut stream = agent.client().connect(request).await.unwrap();
        let first = stream.message::<ConnectResponse>().await.unwrap().unwrap().to_owned_message();
        let Some(Event::Start(start)) = first.event.into_option().unwrap().event else { panic!("no start") };
        start.offset
    };
    assert_eq!((connect(Some(true)).await, connect(None).await), (Some(6), None));
}

#[tokio::test]
async fn many_processes_that_have_ended_take_bounded_memory() {
    let agent = Agent::start();
    for _ in 0..80 {
        agent.run(shell("head -c 2000000 /dev/zero"), CallOptions::default()).await.unwrap();
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().next().unwrap().parse().unwrap();
    // 160 MB went through it; 32 MiB may be kept.
    assert!(kibibytes < 80 << 10, "{kibibytes} KiB");
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_the_process_back_until_it_leaves() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let line = format!("head -c 20000000 /dev/zero; touch {}; sleep 60", done.display());
    let session = Session::start(&agent, shell(&line)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!done.exists(), "20 MB went to a reader that takes none");
    let again = Session::connect(&agent, by_tag("job"), Some(0)).await.unwrap();
    again.signal(Signal::SIGNAL_UNSPECIFIED).await.unwrap_err();
    drop((session, again));
    eventually("the writing", || done.exists()).await;
    Session::connect(&agent, by_tag("job"), None).await.unwrap().signal(Signal::SIGNAL_SIGKILL).await.unwrap();
}

#[tokio::test]
async fn a_process_that_ended_in_time_did_even_if_its_reader_is_late() {
    let agent = Agent::start();
    let options = CallOptions::default().with_header("connect-timeout-ms", "1000");
    // More than a reader may be behind, and no more than that and a pipe.
    let session = Session::start_with(&agent, shell("head -c 350000 /dev/zero; exit 6"), options).await.unwrap();
    let pid = session.seen.pid;
    eventually("the end", || !is_alive(&pid.to_string())).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let seen = session.finish().await.unwrap();
    assert_eq!((seen.stdout.len(), seen.exit_code()), (350_000, 6));
}

#[tokio::test]
async fn a_process_that_has_ended_is_not_listed_though_its_output_waits() {
    let agent = Agent::start();
    let session = Session::start(&agent, shell("head -c 1000000 /dev/zero; exit 0")).await.unwrap();
    let pid = session.seen.pid;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // It is blocked, or its output waits; which, depends on the reader's own buffers.
    let listed = agent.client().list(ListRequest::default()).await.unwrap().into_owned().processes;
    let runs = is_alive(&pid.to_string());
    assert_eq!(listed.iter().any(|info| info.pid == pid), runs);
    assert_eq!(session.finish().await.unwrap().stdout.len(), 1_000_000);
}
