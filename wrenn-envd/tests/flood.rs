//! Whoever in the guest may not call takes little, and nothing from the host.

mod support;

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::Agent;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

const HOST: &str = "127.0.0.2";

fn resident_kib(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent serves");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the agent serves").to_owned();
    line.split_whitespace().next().expect("the agent serves").parse().expect("the agent serves")
}

async fn connect_as_host(agent: &Agent) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("the agent serves");
    socket.bind(SocketAddr::new(HOST.parse().expect("the agent serves"), 0)).expect("the agent serves");
    socket.connect(agent.address).await.expect("the agent serves")
}

/// One call of the host's on a connection of its own: its status and its body.
async fn call_as_host(agent: &Agent, method: &str, route: &str, body: &str) -> (StatusCode, Bytes) {
    let stream = TokioIo::new(connect_as_host(agent).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("the agent serves");
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(route).header("host", "guest");
    let body = Full::new(Bytes::from(body.to_owned()));
    let answer = sender
        .send_request(request.header("content-type", "application/json").body(body).expect("the agent serves"))
        .await;
    let answer = answer.expect("the agent serves");
    let status = answer.status();
    (status, answer.into_body().collect().await.expect("the agent serves").to_bytes())
}

/// Almost the largest body that is taken, and no end.
fn unfinished(bytes: usize) -> BoxBody<Bytes, std::io::Error> {
    let begin = stream::iter((0..bytes / 16_384).map(|_| Ok(Frame::data(Bytes::from(vec![b' '; 16_384])))));
    BodyExt::boxed(StreamBody::new(begin.chain(stream::pending())))
}

#[tokio::test]
async fn requests_that_nobody_vouches_for_are_not_kept_in_memory() {
    let agent = Agent::start();
    let before = resident_kib(&agent);
    let stream = TokioIo::new(TcpStream::connect(agent.address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..100 {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let request = Request::post("http://guest/init").body(unfinished(900 << 10)).unwrap();
            let _ = sender.send_request(request).await;
        });
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let resident = resident_kib(&agent);
    println!("measured: {before} KiB before, {resident} KiB with 100 unfinished requests");
    assert!(resident < before + (16 << 10), "{before} KiB, then {resident} KiB");
    drop(sender);
    // Who has no token yet is let in all the same, when there is room again.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        let json = [("content-type", "application/json")];
        let status = agent.call("POST", "/init", &json, r#"{"accessToken":"first"}"#).await.status();
        if status == StatusCode::NO_CONTENT {
            return;
        }
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("the unfinished requests are never given up");
}

#[tokio::test]
async fn a_request_without_the_token_is_refused_before_its_body_is_there() {
    let agent = Agent::start();
    let json = [("content-type", "application/json")];
    agent.call("POST", "/init", &json, r#"{"accessToken":"first"}"#).await;
    let mut stream = TcpStream::connect(agent.address).await.unwrap();
    let head = "POST /init HTTP/1.1\r\nhost: guest\r\ncontent-length: 1000000\r\nconnection: close\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    let length = timeout(Duration::from_secs(5), stream.read(&mut answer)).await.expect("it is answered").unwrap();
    assert!(String::from_utf8_lossy(&answer[..length]).starts_with("HTTP/1.1 401"), "{answer:?}");
}

#[tokio::test]
async fn the_host_is_served_under_a_flood_of_connections() {
    let agent = Agent::start_with(&["--host", HOST]);
    let mut flood = Vec::new();
    for number in 0..600 {
        let Ok(mut stream) = TcpStream::connect(agent.address).await else { continue };
        let begin = ["POST /init HTTP/1.1\r\nhost: guest\r\ncontent-length: 1000\r\n\r\n{", "GET / HT", ""][number % 3];
        let _ = stream.write_all(begin.as_bytes()).await;
        flood.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    assert!(open < 200, "{open} descriptors");
    for _ in 0..20 {
        let begun = Instant::now();
        let init = timeout(Duration::from_secs(5), call_as_host(&agent, "POST", "/init", r#"{"envVars":{"A":"1"}}"#));
        assert_eq!(init.await.expect("the host is answered").0, StatusCode::NO_CONTENT);
        let envs = timeout(Duration::from_secs(5), call_as_host(&agent, "GET", "/envs", ""));
        assert_eq!(envs.await.expect("the host is answered").1, r#"{"A":"1"}"#);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    drop(flood);
    // Others get in again when those have left.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        let mut stream = TcpStream::connect(agent.address).await.unwrap();
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n").await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        if answer.starts_with(b"HTTP/1.1 204") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody but the host gets in");
}
