//! Calls of any protocol and codec whose bytes may be wrong, and whether their answers are right.

use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request, Response,
    body::{Bytes, Incoming},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{
    Agent,
    wire::{frame, whole_frames},
};

/// How the messages of a call lie in its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One message, and nothing else.
    Bare,
    /// Each in an envelope; the last one of the answer is the end.
    Connect,
    /// Each in an envelope, over HTTP/2; the end is in the trailers.
    Grpc,
}

/// A protocol with a codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) content_type: &'static str,
    pub(crate) framing: Framing,
}

impl Kind {
    pub(crate) const JSON: Self = Self { content_type: "application/json", framing: Framing::Bare };
    pub(crate) const PROTO: Self = Self { content_type: "application/proto", framing: Framing::Bare };
    pub(crate) const JSON_STREAM: Self = Self { content_type: "application/connect+json", framing: Framing::Connect };
    pub(crate) const PROTO_STREAM: Self = Self { content_type: "application/connect+proto", framing: Framing::Connect };
    pub(crate) const GRPC: Self = Self { content_type: "application/grpc+proto", framing: Framing::Grpc };
}

/// A call, message by message.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) route: &'static str,
    pub(crate) kind: Kind,
    pub(crate) messages: Vec<Vec<u8>>,
}

impl Call {
    pub(crate) fn new(route: &'static str, kind: Kind, messages: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        Self { route, kind, messages: messages.into_iter().map(|message| message.as_ref().to_vec()).collect() }
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        match self.kind.framing {
            Framing::Bare => self.messages.concat(),
            Framing::Connect | Framing::Grpc => self.messages.iter().flat_map(|message| frame(0, message)).collect(),
        }
    }

    /// Sends `body` in the place of the right one. An answer that is no HTTP is an error.
    pub(crate) async fn send(&self, agent: &Agent, body: &[u8]) -> Result<Answer, String> {
        let stream = TokioIo::new(TcpStream::connect(agent.address).await.expect("the agent listens"));
        let request = Request::post(format!("http://guest/{}", self.route)).header("host", "guest");
        let request = request.header("content-type", self.kind.content_type).header("connect-protocol-version", "1");
        let request =
            request.header("te", "trailers").body(Full::new(Bytes::copy_from_slice(body))).expect("a request");
        let response = if self.kind.framing == Framing::Grpc {
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await;
            let (mut sender, connection) = handshake.expect("HTTP/2");
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("HTTP/1.1");
            tokio::spawn(connection);
            sender.send_request(request).await
        };
        Answer::receive(self, response.map_err(|error| format!("no answer: {error}"))?).await
    }

    /// Whether the answer goes on until its client leaves.
    fn is_endless(&self) -> bool {
        self.route.ends_with("/WatchDir")
    }
}

/// What came back for a call.
#[derive(Debug)]
pub(crate) struct Answer {
    kind: Kind,
    status: u16,
    content_type: String,
    pub(crate) body: Vec<u8>,
    ends: HeaderMap,
    /// It was left when it had begun.
    is_left: bool,
}

impl Answer {
    async fn receive(call: &Call, response: Response<Incoming>) -> Result<Self, String> {
        let (head, mut incoming) = response.into_parts();
        let content_type = head.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let mut answer = Self {
            kind: call.kind,
            status: head.status.as_u16(),
            content_type: content_type.to_owned(),
            body: Vec::new(),
            ends: head.headers,
            is_left: false,
        };
        while let Some(frame) = incoming.frame().await {
            match frame.map_err(|error| format!("a torn answer: {error}"))?.into_data() {
                Ok(data) => answer.body.extend(data),
                Err(frame) => answer.ends.extend(frame.into_trailers().unwrap_or_default()),
            }
            let has_begun = answer.envelopes().is_ok_and(|frames| frames.first().is_some_and(|(flags, _)| *flags == 0));
            if call.is_endless() && has_begun {
                answer.is_left = true;
                break;
            }
        }
        Ok(answer)
    }

    /// The code that the call was refused with, `None` for one that was carried out; an error where the answer is not what
    /// the protocol has.
    pub(crate) fn refusal(&self) -> Result<Option<String>, String> {
        let refusal = match self.kind.framing {
            _ if self.is_left => Ok(None),
            Framing::Bare => self.refusal_alone(),
            Framing::Connect => self.refusal_at_end(),
            Framing::Grpc => self.refusal_in_trailers(),
        };
        refusal.map_err(|what| format!("{what}: {} {:?}", self.status, String::from_utf8_lossy(&self.body)))
    }

    fn refusal_alone(&self) -> Result<Option<String>, String> {
        match self.status {
            200 if self.content_type != self.kind.content_type => Err(format!("it is {}", self.content_type)),
            200 if self.kind == Kind::JSON => object(&self.body).map(|_| None),
            200 => Ok(None),
            400.. if self.content_type == "application/json" => code(&object(&self.body)?).map(Some),
            _ => Err(format!("a status with {}", self.content_type)),
        }
    }

    fn refusal_at_end(&self) -> Result<Option<String>, String> {
        if (self.status, self.content_type.as_str()) != (200, self.kind.content_type) {
            return Err(format!("it is {}", self.content_type));
        }
        let frames = self.envelopes()?;
        let ((flags, end), others) = frames.split_last().ok_or("it has no end")?;
        if *flags != 2 || others.iter().any(|(flags, _)| *flags != 0) {
            return Err("its end is not its last frame".to_owned());
        }
        object(end)?.get("error").map(code).transpose()
    }

    fn refusal_in_trailers(&self) -> Result<Option<String>, String> {
        self.envelopes()?;
        let status =
            self.ends.get("grpc-status").and_then(|value| value.to_str().ok()).ok_or("it has no grpc-status")?;
        match (self.status, status.parse::<u8>()) {
            (200, Ok(0)) => Ok(None),
            (200, Ok(code @ 1..=16)) => Ok(Some(code.to_string())),
            _ => Err(format!("grpc-status {status}")),
        }
    }

    fn envelopes(&self) -> Result<Vec<(u8, Vec<u8>)>, String> {
        whole_frames(&self.body).ok_or_else(|| "a torn frame".to_owned())
    }
}

fn object(text: &[u8]) -> Result<serde_json::Value, String> {
    match serde_json::from_slice(text) {
        Ok(value @ serde_json::Value::Object(_)) => Ok(value),
        other => Err(format!("no object, but {other:?}")),
    }
}

fn code(error: &serde_json::Value) -> Result<String, String> {
    let text = |name: &str| error[name].as_str().filter(|text| !text.is_empty());
    match (text("code"), text("message")) {
        (Some(code), Some(_)) => Ok(code.to_owned()),
        _ => Err(format!("{error} without its code or its message")),
    }
}
