//! Requests and answers, byte for byte.

use std::time::Duration;

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
pub(crate) fn frames(body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    whole_frames(body).unwrap_or_else(|| panic!("a torn frame in {body:?}"))
}

/// The frames of an answer; `None` where they are torn.
pub(crate) fn whole_frames(mut body: &[u8]) -> Option<Vec<(u8, Vec<u8>)>> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = body.split_first_chunk::<5>() {
        let length = header[1..].iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        let (message, next) = rest.split_at_checked(length)?;
        frames.push((header[0], message.to_vec()));
        body = next;
    }
    body.is_empty().then_some(frames)
}

/// A field of a protobuf message that is text, bytes or a message.
pub(crate) fn text(field: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(u64::from(field) << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// A field that is a number or a bool.
pub(crate) fn number(field: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).expect("seven bits"));
    bytes
}

/// Sends bytes, and returns all that comes until the agent closes the connection.
pub(crate) async fn send(agent: &Agent, pieces: impl IntoIterator<Item = &[u8]>) -> Vec<u8> {
    send_with_pauses(agent, pieces, Duration::ZERO).await
}

/// The same, with a pause after each piece, so that the agent reads it by itself.
pub(crate) async fn send_slowly(agent: &Agent, pieces: impl IntoIterator<Item = &[u8]>) -> Vec<u8> {
    send_with_pauses(agent, pieces, Duration::from_millis(2)).await
}

async fn send_with_pauses(agent: &Agent, pieces: impl IntoIterator<Item = &[u8]>, pause: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(agent.address).await.expect("the agent listens");
    stream.set_nodelay(true).expect("the agent listens");
    for piece in pieces {
        // A request that is refused half-way closes the connection.
        if stream.write_all(piece).await.is_err() {
            break;
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
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
