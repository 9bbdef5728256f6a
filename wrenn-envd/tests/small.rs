//! The agent is small: each guest pays for it.

mod support;

use std::time::Instant;

use support::{Agent, session::Session, start};
use wrenn_envd::proto::process::Signal;

fn status_kib(agent: &Agent, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("Linux says it").to_owned();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// What the agent has for itself. Its program's own pages are the file's: an unoptimized one's are many, and are measured
/// in the guest.
fn resident_kib(agent: &Agent) -> u64 {
    status_kib(agent, "RssAnon:")
}

#[tokio::test]
async fn a_hundred_processes_take_less_than_eight_mebibytes() {
    let agent = Agent::start();
    let idle = resident_kib(&agent);
    let line = "echo up; echo err >&2; exec sleep 60";
    let mut sessions = Vec::new();
    for _ in 0..100 {
        let mut session = Session::start(&agent, start("sh", &["-c", line])).await.unwrap();
        session.expect("up").await;
        sessions.push(session);
    }
    let resident = resident_kib(&agent);
    println!("measured: {idle} KiB idle, {resident} KiB with 100 processes");
    assert!(resident < 8 << 10, "{resident} KiB");
    for session in &sessions {
        session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
    }
}

#[tokio::test]
async fn two_hundred_commands_run_at_once() {
    let agent = Agent::start();
    let begun = Instant::now();
    let commands = (0..200).map(|number| {
        let agent = &agent;
        async move { agent.shell(&format!("sleep 0.5; echo {number}; exit {}", number % 250)).await.unwrap() }
    });
    let done = futures::future::join_all(commands).await;
    println!("measured: 200 commands of half a second in {:?}", begun.elapsed());
    for (number, done) in done.iter().enumerate() {
        assert_eq!(done.stdout_utf8(), format!("{number}\n"));
        assert_eq!(done.exit_code(), i32::try_from(number % 250).unwrap());
    }
    assert!(begun.elapsed().as_secs() < 50, "one after the other would take 100 s: {:?}", begun.elapsed());
}

#[tokio::test]
async fn descriptors_are_given_back() {
    let agent = Agent::start();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    agent.shell("true").await.unwrap();
    let before = open();
    for _ in 0..50 {
        agent.shell("echo x").await.unwrap();
        assert!(agent.run(start("no-such-command", &[]), Default::default()).await.is_err());
        let mut request = start("sh", &["-c", "echo x"]);
        request.pty = wrenn_envd::proto::process::PTY::default().into();
        agent.run(request, Default::default()).await.unwrap();
    }
    support::eventually("no more than before", || open() <= before + 2).await;
}
