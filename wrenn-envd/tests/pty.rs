//! A terminal in the guest is a terminal.

mod support;

use connectrpc::ErrorCode;
use support::{
    Agent, eventually, is_alive,
    session::{Session, by_pid},
    start,
};
use wrenn_envd::proto::process::{
    CloseStdinRequest, PTY, Signal, StartRequest, UpdateRequest, process_input::Input, pty,
};

fn terminal(cols: u32, rows: u32) -> PTY {
    PTY { size: pty::Size { cols, rows, ..Default::default() }.into(), ..Default::default() }
}

fn shell_at(cols: u32, rows: u32, args: &[&str]) -> StartRequest {
    let mut request = start("/bin/sh", args);
    request.pty = terminal(cols, rows).into();
    request
}

#[tokio::test]
async fn a_process_leads_its_session_at_a_terminal_of_the_asked_size() {
    let agent = Agent::start();
    let line = "tty; stty size; echo $TERM; test $(ps -o sid= -p $$) = $$ && echo leader; test -t 2 && cat </dev/tty";
    let mut session = Session::start(&agent, shell_at(100, 40, &["-c", line])).await.unwrap();
    session.expect("leader").await;
    session.type_in("to the terminal\n\u{4}").await;
    let seen = session.finish().await.unwrap();
    let text = String::from_utf8_lossy(&seen.pty).into_owned();
    assert!(text.starts_with("/dev/pts/") && text.contains("\r\n40 100\r\nxterm-256color\r\nleader\r\n"), "{text:?}");
    assert_eq!(text.matches("to the terminal").count(), 2, "its echo, and what was read: {text:?}");
    assert!(seen.stdout.is_empty() && seen.stderr.is_empty() && seen.exit_code() == 0);
}

#[tokio::test]
async fn a_new_size_reaches_the_program() {
    let agent = Agent::start();
    let line = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut session = Session::start(&agent, shell_at(80, 24, &["-c", line])).await.unwrap();
    session.expect("ready").await;
    let resize = |size| UpdateRequest { process: session.selector().into(), pty: size, ..Default::default() };
    session.client.update(resize(terminal(132, 50).into())).await.unwrap();
    let zero = session.client.update(resize(terminal(0, 50).into())).await.unwrap_err();
    assert_eq!(zero.code, ErrorCode::InvalidArgument);
    session.expect("50 132").await;
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
    assert_eq!(session.finish().await.unwrap().end.unwrap().status, "signal: killed");
}

#[tokio::test]
async fn control_characters_are_signals_to_the_foreground() {
    let agent = Agent::start();
    let mut session = Session::start(&agent, shell_at(80, 24, &["-i"])).await.unwrap();
    session.type_in("sleep 60; echo st=$?\n").await;
    // A child that is not yet `sleep` may not be in the foreground yet.
    eventually("a sleeping child", || {
        let children = format!("/proc/{0}/task/{0}/children", session.seen.pid);
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let comm = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm"));
        children.split_whitespace().any(|pid| comm(pid).is_ok_and(|comm| comm == "sleep\n"))
    })
    .await;
    session.type_in("\u{3}").await;
    session.type_in("echo after-$((6*7))\n").await;
    session.expect("after-42").await;
    session.type_in("exit 9\n").await;
    assert_eq!(session.finish().await.unwrap().exit_code(), 9);
}

#[tokio::test]
async fn whoever_is_left_at_the_terminal_is_hung_up() {
    let agent = Agent::start();
    let line = "sh -c 'trap \"echo hup >$0; exit\" HUP; echo up; while :; do sleep 0.05; done' $0 & \
                sleep 0.3; echo pid=$!; exit 0";
    let directory = tempfile::tempdir().unwrap();
    let told = directory.path().join("told");
    let request = shell_at(80, 24, &["-m", "-c", "set +m; eval \"$1\"", told.to_str().unwrap(), line]);
    let mut session = Session::start(&agent, request).await.unwrap();
    session.expect("pid=").await;
    let seen = session.finish().await.unwrap();
    let text = String::from_utf8_lossy(&seen.pty).into_owned();
    let pid = text.split("pid=").nth(1).unwrap().trim().to_owned();
    eventually("the hang-up", || std::fs::read_to_string(&told).is_ok_and(|told| told == "hup\n")).await;
    eventually("the end of the background", || !is_alive(&pid)).await;
}

#[tokio::test]
async fn a_terminal_belongs_to_its_user() {
    if !nix_is_root() {
        println!("skipped: a_terminal_belongs_to_its_user: no root");
        return;
    }
    let agent = Agent::start();
    let options = connectrpc::client::CallOptions::default().with_header("authorization", "Basic bm9ib2R5Og==");
    let request = shell_at(80, 24, &["-c", "stat -c %U $(tty); echo hello >$(tty)"]);
    let session = Session::start_with(&agent, request, options).await.unwrap();
    let seen = session.finish().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&seen.pty), "nobody\r\nhello\r\n");
}

#[tokio::test]
async fn input_of_the_wrong_kind_is_refused_with_its_remedy() {
    let agent = Agent::start();
    let session = Session::start(&agent, shell_at(80, 24, &["-c", "sleep 60"])).await.unwrap();
    let error = session.input(Input::Stdin(b"x".to_vec())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.unwrap().contains("send the input as `pty`"));
    let close = CloseStdinRequest { process: session.selector().into(), ..Default::default() };
    let error = session.client.close_stdin(close).await.unwrap_err();
    assert!(error.message.unwrap().contains("Ctrl-D"));
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();

    let piped = Session::start(&agent, start("sleep", &["60"])).await.unwrap();
    let error = piped.input(Input::Pty(b"x".to_vec())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let resize = UpdateRequest { process: piped.selector().into(), pty: terminal(1, 1).into(), ..Default::default() };
    assert!(piped.client.update(resize).await.unwrap_err().message.unwrap().contains("no terminal"));
    let nobody = UpdateRequest { process: by_pid(1 << 30).into(), ..Default::default() };
    assert_eq!(piped.client.update(nobody).await.unwrap_err().code, ErrorCode::NotFound);
    piped.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
}

#[tokio::test]
async fn a_thousand_lines_of_a_terminal_arrive_whole() {
    let agent = Agent::start();
    let line = "stty -opost; i=0; while [ $i -lt 20000 ]; do echo line-$i; i=$((i+1)); done";
    let session = Session::start(&agent, shell_at(80, 24, &["-c", line])).await.unwrap();
    let seen = session.finish().await.unwrap();
    let expected: String = (0..20_000).map(|number| format!("line-{number}\n")).collect();
    assert!(seen.pty == expected.as_bytes(), "{} bytes for {}", seen.pty.len(), expected.len());
}

fn nix_is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains("Uid:\t0\t0"))
}

#[tokio::test]
async fn a_terminals_line_editing_takes_whole_characters_away() {
    let agent = Agent::start();
    let mut session =
        Session::start(&agent, shell_at(80, 24, &["-c", "echo ready; read line; echo \"<$line>\""])).await.unwrap();
    session.expect("ready").await;
    session.type_in("a\u{e9}\u{7f}b\n").await;
    session.expect("<ab>").await;
    session.finish().await.unwrap();
}
