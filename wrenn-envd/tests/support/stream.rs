//! An answer of the Connect protocol, a frame at a time.

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    body::{Bytes, Incoming},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Agent, wire::frame};

/// Dropping it leaves the call.
pub(crate) struct FrameStream {
    incoming: Incoming,
    pending: Vec<u8>,
}

impl FrameStream {
    /// Calls `route` with one message, in the codec that is "json" or "proto".
    pub(crate) async fn open(
        agent: &Agent,
        route: &str,
        codec: &str,
        headers: &[(&str, &str)],
        message: impl AsRef<[u8]>,
    ) -> Self {
        let stream = TcpStream::connect(agent.address).await.expect("the agent listens");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        let kind = format!("application/connect+{codec}");
        let mut request = Request::post(route).header("host", "guest").header("content-type", &kind);
        request = request.header("connect-protocol-version", "1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(frame(0, message.as_ref())))).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let told = response.headers()["content-type"].to_str().expect("text").to_owned();
        assert_eq!((response.status().as_u16(), told), (200, kind), "{route}");
        Self { incoming: response.into_body(), pending: Vec::new() }
    }

    /// The next frame: its flags and its message. `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, rest)) = self.pending.split_first_chunk::<5>() {
                let length = header[1..].iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
                if let Some((message, rest)) = rest.split_at_checked(length) {
                    let next = (header[0], message.to_vec());
                    self.pending = rest.to_vec();
                    return Some(next);
                }
            }
            let Some(piece) = self.incoming.frame().await else {
                assert!(self.pending.is_empty(), "a torn frame: {:?}", self.pending);
                return None;
            };
            if let Ok(data) = piece.expect("a whole answer").into_data() {
                self.pending.extend(data);
            }
        }
    }

    /// The next message, of a stream that goes on.
    pub(crate) async fn message(&mut self) -> Vec<u8> {
        match self.next().await {
            Some((0, message)) => message,
            other => panic!("no message, but {other:?}"),
        }
    }

    /// The next message, as text.
    pub(crate) async fn text(&mut self) -> String {
        String::from_utf8(self.message().await).expect("UTF-8")
    }
}
