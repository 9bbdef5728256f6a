//! Requests and answers, byte for byte.

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::Agent;

/// One frame of a Connect stream: flags, the length in network order, the message.
pub(crate) fn frame(flags: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a short message");
    let mut frame = vec![flags];
    frame.extend((0..4).map(|at| u8::try_from(length >> (24 - 8 * at) & 0xff).expect("a byte")));
    frame.extend(message);
    frame
}

/// The frames of an answer; panics where they are torn.
pub(crate) fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [flags, l0, l1, l2, l3, rest @ ..] = body {
        let length = [l0, l1, l2, l3].iter().fold(0_usize, |length, byte| length << 8 | usize::from(**byte));
        let (message, next) = rest.split_at(length);
        frames.push((*flags, message.to_vec()));
        body = next;
    }
    assert!(body.is_empty(), "{body:?}");
    frames
}

/// Sends bytes, and returns all that comes until the agent closes the connection.
pub(crate) async fn send(agent: &Agent, pieces: impl IntoIterator<Item = &[u8]>) -> Vec<u8> {
    let mut stream = TcpStream::connect(agent.address).await.expect("the agent listens");
    stream.set_nodelay(true).expect("the agent listens");
    for piece in pieces {
        // A request that is refused half-way closes the connection.
        if stream.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// A request whose answer ends the connection.
pub(crate) fn request(route: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {route} HTTP/1.1\r\nhost: guest\r\nconnect-protocol-version: 1\r\ncontent-type: {kind}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The same inputs every time, so that a failure is one everywhere.
pub(crate) fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}
