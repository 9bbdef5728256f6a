//! Processes are named by number or tag, and take input as calls and as a stream, whatever the protocol.

mod support;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use connectrpc::{
    ConnectError, ErrorCode, Protocol,
    client::{CallOptions, ClientConfig, HttpClient},
};
use futures::stream;
use support::{
    Agent, Collected,
    session::{Session, by_pid, by_tag},
    start,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use wrenn_envd::proto::process::{
    CloseStdinRequest, ProcessClient, ProcessInput, ProcessSelector, SendInputRequest, SendSignalRequest, Signal,
    StartResponse, StreamInputRequest, process_event::Event, process_input::Input, stream_input_request,
};

fn begin(process: ProcessSelector) -> StreamInputRequest {
    let start = stream_input_request::StartEvent { process: process.into(), ..Default::default() };
    StreamInputRequest { event: Some(start.into()), ..Default::default() }
}

fn piece(text: &str) -> StreamInputRequest {
    let input = ProcessInput { input: Some(Input::Stdin(text.as_bytes().to_vec())), ..Default::default() };
    let data = stream_input_request::DataEvent { input: input.into(), ..Default::default() };
    StreamInputRequest { event: Some(data.into()), ..Default::default() }
}

fn sign_of_life() -> StreamInputRequest {
    let keepalive = stream_input_request::KeepAlive::default();
    StreamInputRequest { event: Some(keepalive.into()), ..Default::default() }
}

#[tokio::test]
async fn a_stream_of_input_is_read_in_its_order() {
    let agent = Agent::start();
    let mut request = start("head", &["-n", "100"]);
    (request.stdin, request.tag) = (Some(true), Some("reader".to_owned()));
    let session = Session::start(&agent, request).await.unwrap();
    let lines: Vec<String> = (0..100).map(|number| format!("line {number}\n")).collect();
    let mut requests = vec![begin(by_tag("reader")), sign_of_life()];
    requests.extend(lines.iter().map(|line| piece(line)));
    agent.client().stream_input(stream::iter(requests)).await.unwrap();
    assert_eq!(session.finish().await.unwrap().stdout_utf8(), lines.concat());

    let error = agent.client().stream_input(stream::iter([piece("too early")])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    let error = agent.client().stream_input(stream::iter([begin(by_tag("reader"))])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound, "it has ended");
}

/// Each line is asked for by the one before: one that was kept back for more would never be sent.
#[tokio::test]
async fn a_line_that_comes_alone_is_told_at_once_even_after_a_flood() {
    let agent = Agent::start();
    let line = "head -c 3000000 /dev/zero; while read line; do echo \"got $line\"; done";
    let mut request = start("sh", &["-c", line]);
    (request.stdin, request.tag) = (Some(true), Some("asked".to_owned()));
    let mut session = Session::start(&agent, request).await.unwrap();
    session.expect(&"\0".repeat(3_000_000)).await;
    for number in 0..20 {
        let input = piece(&format!("{number}\n"));
        agent.client().stream_input(stream::iter([begin(by_tag("asked")), input])).await.unwrap();
        session.expect(&format!("got {number}\n")).await;
    }
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
    session.finish().await.unwrap();
}

#[tokio::test]
async fn a_tag_names_its_process_and_no_other() {
    let agent = Agent::start();
    let mut sessions = Vec::new();
    for tag in ["one", "two"] {
        let mut request = start("sh", &["-c", "trap 'echo late; exit 3' TERM; echo up; while :; do sleep 0.05; done"]);
        request.tag = Some(tag.to_owned());
        let mut session = Session::start(&agent, request).await.unwrap();
        session.expect("up").await;
        sessions.push(session);
    }
    let signal =
        |process: ProcessSelector, signal| SendSignalRequest { process: process.into(), signal, ..Default::default() };
    let client = agent.client();
    client.send_signal(signal(by_tag("two"), Signal::SIGNAL_SIGTERM.into())).await.unwrap();
    let two = sessions.pop().unwrap().finish().await.unwrap();
    assert_eq!((two.stdout_utf8().as_str(), two.exit_code()), ("up\nlate\n", 3), "nothing is lost after SIGTERM");
    let error = client.send_signal(signal(by_tag("two"), Signal::SIGNAL_SIGTERM.into())).await.unwrap_err();
    assert!(error.code == ErrorCode::NotFound && error.message.unwrap().contains("two"));
    let error =
        client.send_signal(signal(ProcessSelector::default(), Signal::SIGNAL_SIGTERM.into())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    let error = client.send_signal(signal(by_tag("one"), 77.into())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument, "no such signal");
    client.send_signal(signal(by_tag("one"), Signal::SIGNAL_SIGKILL.into())).await.unwrap();
    assert_eq!(sessions.pop().unwrap().finish().await.unwrap().end.unwrap().status, "signal: killed");
}

#[tokio::test]
async fn without_stdin_there_is_nothing_to_read_and_nothing_to_write_to() {
    let agent = Agent::start();
    let done = agent.shell("readlink /proc/self/fd/0; cat; echo end").await.unwrap();
    assert_eq!(done.stdout_utf8(), "/dev/null\nend\n");
    let session = Session::start(&agent, start("sleep", &["60"])).await.unwrap();
    let input = ProcessInput { input: Some(Input::Stdin(b"x".to_vec())), ..Default::default() };
    let request = SendInputRequest { process: session.selector().into(), input: input.into(), ..Default::default() };
    let error = agent.client().send_input(request).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
}

/// A process that reads nothing until a file is there, and a client's megabyte of input that waits for it.
struct Waiting {
    agent: Arc<Agent>,
    session: Session,
    go: PathBuf,
    input: JoinHandle<Result<(), ConnectError>>,
    _directory: TempDir,
}

impl Waiting {
    async fn start() -> Self {
        let (agent, directory) = (Arc::new(Agent::start()), tempfile::tempdir().expect("a directory"));
        let go = directory.path().join("go");
        let line = format!("while [ ! -e {} ]; do sleep 0.02; done; wc -c", go.display());
        let mut request = start("sh", &["-c", &line]);
        (request.stdin, request.tag) = (Some(true), Some("waiting".to_owned()));
        let session = Session::start(&agent, request).await.expect("it starts");
        let (client, input) = (agent.client(), megabyte(by_tag("waiting")));
        let input = tokio::spawn(async move { client.send_input(input).await.map(drop) });
        // Until the pipe is full.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!input.is_finished(), "nobody reads it");
        Self { agent, session, go, input, _directory: directory }
    }

    fn close(&self) -> JoinHandle<Result<(), ConnectError>> {
        let client = self.agent.client();
        let request = CloseStdinRequest { process: by_tag("waiting").into(), ..Default::default() };
        tokio::spawn(async move { client.close_stdin(request).await.map(drop) })
    }

    /// What the process has read, once it may.
    async fn count(self) -> usize {
        std::fs::write(&self.go, "").expect("a file");
        let done = soon(self.session.finish()).await.expect("no error");
        done.stdout_utf8().trim().parse().expect("a number")
    }
}

fn megabyte(process: ProcessSelector) -> SendInputRequest {
    let input = ProcessInput { input: Some(Input::Stdin(vec![b'x'; 1_000_000])), ..Default::default() };
    SendInputRequest { process: process.into(), input: input.into(), ..Default::default() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it comes within 10 s")
}

#[tokio::test]
async fn a_close_comes_after_all_input_that_was_sent_before_it() {
    let mut waiting = Waiting::start().await;
    let close = waiting.close();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!close.is_finished() && !waiting.input.is_finished());
    std::fs::write(&waiting.go, "").unwrap();
    soon(&mut waiting.input).await.unwrap().unwrap();
    soon(close).await.unwrap().unwrap();
    assert_eq!(waiting.count().await, 1_000_000);
}

#[tokio::test]
async fn input_that_its_client_gave_up_holds_nobody_back() {
    // By the end of a stream of HTTP/2.
    let waiting = Waiting::start().await;
    let close = waiting.close();
    waiting.input.abort();
    soon(close).await.unwrap().unwrap();
    let count = waiting.count().await;
    assert!((1..1_000_000).contains(&count), "{count}");
    // By the end of a connection of HTTP/1.1.
    let waiting = Waiting::start().await;
    waiting.input.abort();
    let agent = waiting.agent.clone();
    let input = tokio::spawn(async move {
        let body = r#"{"process":{"tag":"waiting"},"input":{"stdin":"eA=="}}"#;
        agent.call("POST", "/process.Process/SendInput", &[("content-type", "application/json")], body).await
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!input.is_finished(), "the pipe is full");
    input.abort();
    soon(waiting.close()).await.unwrap().unwrap();
    assert!((1..1_000_000).contains(&waiting.count().await));
}

#[tokio::test]
async fn a_kill_waits_for_no_input() {
    let waiting = Waiting::start().await;
    let close = waiting.close();
    soon(waiting.session.signal(Signal::SIGNAL_SIGKILL)).await.unwrap();
    assert_eq!(soon(waiting.session.finish()).await.unwrap().end.unwrap().status, "signal: killed");
    let error = soon(waiting.input).await.unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    // It may have come after the end.
    let closed = soon(close).await.unwrap();
    assert!(closed.as_ref().err().is_none_or(|error| error.code == ErrorCode::NotFound), "{closed:?}");
}

#[tokio::test]
async fn input_for_a_process_that_has_closed_its_own_says_so() {
    let agent = Agent::start();
    let mut request = start("sh", &["-c", "exec <&-; echo closed; sleep 60"]);
    request.stdin = Some(true);
    let mut session = Session::start(&agent, request).await.unwrap();
    session.expect("closed").await;
    for message in ["the process has closed its standard input", "its standard input is closed"] {
        let error = session.input(Input::Stdin(b"x".to_vec())).await.unwrap_err();
        assert_eq!((error.code, error.message.as_deref()), (ErrorCode::FailedPrecondition, Some(message)));
    }
    session.signal(Signal::SIGNAL_SIGKILL).await.unwrap();
}

#[tokio::test]
async fn a_silent_stream_shows_life_as_often_as_it_is_asked_to() {
    let agent = Agent::start();
    let options = CallOptions::default().with_header("keepalive-ping-interval", "1");
    let mut stream = agent.client().start_with_options(start("sleep", &["60"]), options).await.unwrap();
    let begun = Instant::now();
    let mut pid = 0;
    let mut signs = 0;
    while signs < 2 {
        let message = stream.message::<StartResponse>().await.unwrap().unwrap().to_owned_message();
        match message.event.into_option().unwrap().event.unwrap() {
            Event::Start(start) => pid = start.pid,
            Event::Keepalive(_) => signs += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((Duration::from_millis(1900)..Duration::from_secs(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let kill =
        SendSignalRequest { process: by_pid(pid).into(), signal: Signal::SIGNAL_SIGKILL.into(), ..Default::default() };
    agent.client().send_signal(kill).await.unwrap();
}

#[tokio::test]
async fn grpc_clients_are_served_too() {
    let agent = Agent::start();
    for protocol in [Protocol::Grpc, Protocol::GrpcWeb, Protocol::Connect] {
        let config = ClientConfig::new(format!("http://{}", agent.address).parse().unwrap()).with_protocol(protocol);
        let client = ProcessClient::new(HttpClient::plaintext_http2_only(), config);
        let mut stream = client.start(start("sh", &["-c", "echo out; exit 4"])).await.unwrap();
        let mut seen = Collected::default();
        while let Some(message) = stream.message::<StartResponse>().await.unwrap() {
            seen.add(message.to_owned_message().event.into_option().unwrap());
        }
        assert_eq!((seen.stdout_utf8().as_str(), seen.exit_code()), ("out\n", 4), "{protocol:?}");
    }
}
