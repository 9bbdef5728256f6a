//! A command does what it would do in a terminal, and never outlives its time.

mod support;

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::{ErrorCode, client::CallOptions};
use nix::{
    sys::signal::{Signal::SIGKILL, kill},
    unistd::Pid,
};
use support::{Agent, Collected, eventually, is_alive, session::Session, start};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use wrenn_envd::proto::process::{
    CloseStdinRequest, ConnectRequest, ConnectResponse, ListRequest, ProcessConfig, ProcessInput, ProcessSelector,
    SendInputRequest, SendSignalRequest, Signal, StartRequest, StartResponse, process_config::Variable,
    process_input::Input, process_selector::Selector,
};

fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() }
}

fn timeout_ms(milliseconds: u32) -> CallOptions {
    CallOptions::default().with_header("connect-timeout-ms", milliseconds.to_string())
}

#[tokio::test]
async fn output_errors_and_the_exit_code_arrive() {
    let agent = Agent::start();
    let done = agent.shell("echo out; echo err >&2; exit 3").await.unwrap();
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let end = done.end.unwrap();
    assert_eq!((end.exit_code, end.exited, end.status.as_str()), (3, true, "exit status 3"));
}

#[tokio::test]
async fn who_waits_for_the_end_alone_gets_the_same() {
    let agent = Agent::start();
    let mut request = start("sh", &["-c", "echo out; echo err >&2; exit 3"]);
    request.until_end = Some(true);
    let done = agent.run(request.clone(), CallOptions::default()).await.unwrap();
    assert_eq!((done.stdout.as_slice(), done.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(done.exit_code(), 3);
    request.process.get_or_insert_default().args[1] = "sleep 60".to_owned();
    let client = agent.client();
    let start = tokio::time::timeout(Duration::from_secs(10), client.start(request)).await;
    let mut stream = start.expect("a process that lasts is told of before its end").unwrap();
    let mut seen = Collected::default();
    seen.add(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.into_option().unwrap());
    assert!(is_alive(&seen.pid.to_string()));
}

#[tokio::test]
async fn a_process_whose_answer_has_not_begun_ends_with_its_request() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    // How soon a process runs, and its answer begins, is the machine's to say: what lives on shows nothing by itself.
    for attempt in 0..100 {
        let file = directory.path().join(attempt.to_string());
        let mut request = start("sh", &["-c", &format!("echo $$ > {}; exec sleep 60", file.display())]);
        request.until_end = Some(true);
        let client = agent.client();
        tokio::select! {
            answer = client.start(request) => drop(answer.unwrap()),
            () = tokio::time::sleep(Duration::from_millis(1 + attempt % 10)) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let pid = fs::read_to_string(&file).unwrap_or_default();
        match pid.trim() {
            "" => {}
            pid if !is_alive(pid) => return,
            pid => _ = kill(Pid::from_raw(pid.parse().unwrap()), SIGKILL),
        }
    }
    panic!("no process ended with its request");
}

#[tokio::test]
async fn a_process_may_open_its_own_streams_anew() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a_process_may_open_its_own_streams_anew: no root");
        return;
    }
    let agent = Agent::start();
    let line = "stat -Lc %U /dev/stdin /dev/stdout /dev/stderr; echo out >/dev/stdout; echo err >/dev/stderr; \
        exec 3</dev/stdin; echo read";
    let options = || CallOptions::default().with_header("authorization", "Basic bm9ib2R5Og==");
    let mut request = start("sh", &["-c", line]);
    request.stdin = Some(true);
    let done = agent.run(request, options()).await.unwrap();
    assert_eq!(
        done.stdout_utf8(),
        "nobody\nnobody\nnobody\nout\nread\n",
        "{:?}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(done.stderr, b"err\n");
    // What is shared with every other process stays the superuser's.
    let done = agent.run(start("stat", &["-Lc", "%U", "/dev/stdin"]), options()).await.unwrap();
    assert_eq!(done.stdout_utf8(), "root\n");
}

#[tokio::test]
async fn a_cleared_environment_holds_what_is_given_and_nothing_else() {
    let agent = Agent::start();
    let init = agent.call("POST", "/init", &[], r#"{"envVars":{"SANDBOX":"1"}}"#).await;
    assert_eq!(init.status(), 204, "{:?}", init.body());
    let mut request = start("env", &[]);
    request.process.get_or_insert_default().envs.insert("GIVEN".into(), "2".into());
    let full = agent.run(request.clone(), CallOptions::default()).await.unwrap().stdout_utf8();
    assert!(full.contains("SANDBOX=1\n") && full.contains("GIVEN=2\n") && full.contains("HOME="), "{full}");
    request.process.get_or_insert_default().env_clear = Some(true);
    let cleared = agent.run(request, CallOptions::default()).await.unwrap();
    assert_eq!(cleared.stdout_utf8(), "GIVEN=2\n", "and `env` is found without a PATH");
}

#[tokio::test]
async fn a_signal_is_told_from_an_exit() {
    let agent = Agent::start();
    let end = agent.shell("kill -9 $$").await.unwrap().end.unwrap();
    assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: killed"));
}

#[tokio::test]
async fn stdin_is_read_to_its_end() {
    let agent = Agent::start();
    let client = agent.client();
    let mut request = start("sh", &["-c", "wc -c; read x || echo end"]);
    request.stdin = Some(true);
    let mut stream = client.start(request).await.unwrap();
    let mut seen = Collected::default();
    seen.add(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.into_option().unwrap());
    for _ in 0..3 {
        let input = ProcessInput { input: Some(Input::Stdin(vec![b'x'; 100_000])), ..Default::default() };
        let request = SendInputRequest { process: by_pid(seen.pid).into(), input: input.into(), ..Default::default() };
        client.send_input(request).await.unwrap();
    }
    client.close_stdin(CloseStdinRequest { process: by_pid(seen.pid).into(), ..Default::default() }).await.unwrap();
    while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
        seen.add(message.to_owned_message().event.into_option().unwrap());
    }
    assert_eq!(seen.stdout_utf8(), "300000\nend\n");
}

#[tokio::test]
async fn a_signal_ends_a_process_and_its_number_is_then_unknown() {
    let agent = Agent::start();
    let client = agent.client();
    let mut stream = client.start(start("sleep", &["60"])).await.unwrap();
    let mut seen = Collected::default();
    seen.add(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.into_option().unwrap());
    let listed = client.list(ListRequest::default()).await.unwrap().into_owned().processes;
    assert_eq!(listed.iter().map(|info| info.pid).collect::<Vec<_>>(), [seen.pid]);

    let term = || SendSignalRequest {
        process: by_pid(seen.pid).into(),
        signal: Signal::SIGNAL_SIGTERM.into(),
        ..Default::default()
    };
    client.send_signal(term()).await.unwrap();
    let end = stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.into_option().unwrap();
    let request = term();
    seen.add(end);
    assert_eq!(seen.end.unwrap().status, "signal: terminated");
    assert_eq!(client.send_signal(request).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_time_out_kills_the_whole_group() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    let line = format!("sleep 60 & echo $! > {0}.new; echo $$ >> {0}.new; mv {0}.new {0}; wait", pids.display());
    let begun = Instant::now();
    let error = agent.run(start("sh", &["-c", &line]), timeout_ms(500)).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(begun.elapsed() >= Duration::from_millis(500));
    let pids = std::fs::read_to_string(pids).unwrap();
    assert_eq!(pids.lines().count(), 2);
    eventually("the death of parent and child", || !pids.lines().any(is_alive)).await;
}

#[tokio::test]
async fn a_process_outlives_its_client() {
    let agent = Agent::start();
    let client = agent.client();
    let mut stream =
        client.start(start("sh", &["-c", "echo one; sleep 0.3; echo two; sleep 0.3; echo three"])).await.unwrap();
    let mut first = Collected::default();
    first
        .add(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.into_option().unwrap());
    drop(stream);
    tokio::time::sleep(Duration::from_millis(450)).await;
    let request = ConnectRequest { process: by_pid(first.pid).into(), ..Default::default() };
    let mut stream = client.connect(request).await.unwrap();
    let mut second = Collected::default();
    while let Some(message) = stream.message::<ConnectResponse>().await.unwrap() {
        second.add(message.to_owned_message().event.into_option().unwrap());
    }
    assert!(second.stdout_utf8().ends_with("two\nthree\n"), "{second:?}");
    assert_eq!(second.exit_code(), 0);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let agent = Agent::start();
    let error = agent.run(start("no-such-command", &[]), CallOptions::default()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    let message = error.message.unwrap();
    assert!(message.contains("no-such-command") && message.contains("/usr/bin"), "{message}");

    let mut request = start("true", &[]);
    request.process.as_option_mut().unwrap().cwd = Some("/no/such/directory".to_owned());
    let error = agent.run(request, CallOptions::default()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.unwrap().contains("/no/such/directory"));

    let options = CallOptions::default().with_header("authorization", format!("Basic {}", STANDARD.encode("ghost:")));
    let error = agent.run(start("true", &[]), options).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert!(error.message.unwrap().contains("ghost"));
}

#[tokio::test]
async fn all_output_before_the_exit_arrives() {
    let agent = Agent::start();
    let line = "i=0; while [ $i -lt 16384 ]; do echo 0123456789012345678901234567890123456789012345678901234567890123; i=$((i+1)); done";
    let done = agent.shell(line).await.unwrap();
    assert_eq!(done.stdout.len(), 65 * 16384);
    assert!(done.stdout.chunks(65).all(|line| line.starts_with(b"01234567890") && line.ends_with(b"\n")));
}

#[tokio::test]
async fn a_background_process_does_not_hold_up_the_end() {
    let agent = Agent::start();
    let begun = Instant::now();
    let done = agent.shell("sleep 20 & echo done").await.unwrap();
    assert_eq!((done.stdout_utf8().as_str(), done.exit_code()), ("done\n", 0));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn output_that_nobody_reads_is_bounded() {
    let agent = Agent::start();
    let client = agent.client();
    let mut stream =
        client.start(start("sh", &["-c", "sleep 0.3; head -c 200000000 /dev/zero; sleep 60"])).await.unwrap();
    let mut seen = Collected::default();
    seen.add(stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message().event.into_option().unwrap());
    drop(stream);
    let rss_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let children = format!("/proc/{0}/task/{0}/children", seen.pid);
    eventually("the writing", || {
        let children = std::fs::read_to_string(&children).unwrap_or_default();
        children
            .split_whitespace()
            .any(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "head\n"))
    })
    .await;
    eventually("the end of the writing", || {
        let children = std::fs::read_to_string(&children).unwrap_or_default();
        children
            .split_whitespace()
            .any(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == "sleep\n"))
    })
    .await;
    assert!(rss_kib() < 64 << 10, "{} KiB", rss_kib());
}

#[tokio::test]
async fn orphans_are_reaped_and_no_status_is_lost() {
    let agent = Agent::start();
    let runs = (0..40).map(|code| {
        let line = format!("(sleep 0.05 &) ; (true &) ; exit {code}");
        let agent = &agent;
        async move { agent.shell(&line).await.unwrap().exit_code() }
    });
    let codes = futures::future::join_all(runs).await;
    assert_eq!(codes, (0..40).collect::<Vec<_>>());
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    eventually("an agent without children", || std::fs::read_to_string(&children).unwrap().trim().is_empty()).await;
}

/// What E2B's JavaScript and Python clients send, in pieces as a slow network would deliver it.
#[tokio::test]
async fn json_frames_may_arrive_in_pieces() {
    let agent = Agent::start();
    let message = br#"{"process":{"cmd":"/bin/sh","args":["-c","printf '\\377\\000a'; exit 4"],"envs":{"A":"b"}}}"#;
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes_for_the_wire());
    body.extend(message);
    let head = format!(
        "POST /process.Process/Start HTTP/1.1\r\nhost: guest\r\nconnect-protocol-version: 1\r\n\
         content-type: application/connect+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in body.chunks(7) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for part in [r#"{"stdout":"/wBh"}"#, r#""exitCode":4"#, r#""status":"exit status 4""#] {
        assert!(answer.contains(part), "{part} in {answer}");
    }
}

/// The envelope's length is big-endian by the protocol.
trait Wire {
    fn to_be_bytes_for_the_wire(self) -> [u8; 4];
}

impl Wire for u32 {
    fn to_be_bytes_for_the_wire(self) -> [u8; 4] {
        std::array::from_fn(|at| u8::try_from((self >> (24 - 8 * at)) & 0xff).expect("a byte"))
    }
}

/// However short its time is, and whether or not it has begun by then.
#[tokio::test]
async fn a_process_whose_time_is_short_is_told_to_have_run_out_of_it() {
    let agent = Agent::start();
    for milliseconds in [0, 1, 2, 4, 8, 16, 50] {
        for until_end in [true, false] {
            let mut request = start("sleep", &["60"]);
            request.until_end = Some(until_end);
            let error = agent.run(request, timeout_ms(milliseconds)).await.unwrap_err();
            let told = (error.code, error.message.as_deref());
            let expected = (ErrorCode::DeadlineExceeded, Some("the process was killed: its time was up"));
            assert_eq!(told, expected, "{milliseconds} ms, {until_end}");
        }
    }
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    eventually("an agent without children", || std::fs::read_to_string(&children).unwrap().trim().is_empty()).await;
}

#[tokio::test]
async fn every_signal_of_linux_can_be_sent() {
    let agent = Agent::start();
    for number in [1, 2, 10, 18, 34, 40, 64] {
        let line = format!("trap 'echo got; exit 0' {number}; echo ready; while :; do sleep 0.05; done");
        let mut session = Session::start(&agent, start("bash", &["-c", &line])).await.unwrap();
        session.expect("ready").await;
        let request =
            SendSignalRequest { process: session.selector().into(), signal: number.into(), ..Default::default() };
        session.client.send_signal(request).await.unwrap();
        assert_eq!(session.finish().await.unwrap().stdout_utf8(), "ready\ngot\n", "{number}");
    }
    let session = Session::start(&agent, start("sleep", &["60"])).await.unwrap();
    for number in [0, -1, 65, i32::MAX] {
        let request =
            SendSignalRequest { process: session.selector().into(), signal: number.into(), ..Default::default() };
        let refused = session.client.send_signal(request).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{number}");
    }
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
    assert_eq!(session.finish().await.unwrap().end.unwrap().status, "signal: killed");
}

#[tokio::test]
async fn words_variables_and_the_directory_may_be_any_bytes() {
    let agent = Agent::start();
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join(OsStr::from_bytes(b"d\xff"));
    fs::create_dir(&directory).unwrap();
    let program = directory.join(OsStr::from_bytes(b"p\xfe"));
    std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
    let config = ProcessConfig {
        cmd_bytes: Some(b"./p\xfe".to_vec()),
        args_bytes: vec![b"-c".to_vec(), b"printf '%s|' \"$0\" \"$V\"; pwd".to_vec(), b"\xc3\x28".to_vec()],
        env_bytes: vec![Variable { name: b"V".to_vec(), value: b"\xfd".to_vec(), ..Default::default() }],
        cwd_bytes: Some(directory.as_os_str().as_bytes().to_vec()),
        ..Default::default()
    };
    let request = StartRequest { process: config.into(), stdin: Some(false), ..Default::default() };
    let done = agent.run(request, CallOptions::default()).await.unwrap();
    let expected = [b"\xc3\x28|\xfd|".as_slice(), directory.as_os_str().as_bytes(), b"\n"].concat();
    assert_eq!(done.stdout, expected, "{:?}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn a_program_finds_utf8_unless_it_is_told_otherwise() {
    let agent = Agent::start();
    let done = agent.shell("printf '\u{e9}\u{4e2d}' | wc -m; echo $LANG").await.unwrap();
    assert_eq!(done.stdout_utf8().lines().next(), Some("2"), "{done:?}");
    let mut request = start("sh", &["-c", "echo $LANG"]);
    request.process.as_option_mut().unwrap().envs = [("LANG".to_owned(), "C".to_owned())].into_iter().collect();
    assert_eq!(agent.run(request, CallOptions::default()).await.unwrap().stdout_utf8(), "C\n");
}
