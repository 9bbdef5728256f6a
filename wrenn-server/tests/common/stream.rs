//! A client's end of a stream.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::Client;

/// A client's end of a stream.
pub(crate) struct Stream {
    runtime: Runtime,
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What a stream has said until its end, terminals' output as `stdout`.
#[derive(Default)]
pub(crate) struct Said {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) errors: Vec<String>,
}

impl Stream {
    /// The status and the code of the answer where there is no stream.
    pub(crate) fn open(client: &Client, path: &str) -> Result<Self, (u16, String)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut request = format!("ws://{}{path}", client.address).into_client_request().unwrap();
        request.headers_mut().insert("X-API-Key", client.key.parse().unwrap());
        match runtime.block_on(connect_async(request)) {
            Ok((inner, _)) => Ok(Self { runtime, inner }),
            Err(Error::Http(answer)) => {
                let body: Value = serde_json::from_slice(answer.body().as_ref().unwrap()).unwrap();
                Err((answer.status().as_u16(), body["error"]["code"].as_str().unwrap().to_owned()))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// One that runs a command, which has begun.
    pub(crate) fn exec(client: &Client, id: &str, start: Value) -> Self {
        Self::begun(client, &format!("/v1/sandboxes/{id}/exec/stream"), start).0
    }

    pub(crate) fn terminal(client: &Client, id: &str, start: Value) -> Self {
        Self::begun(client, &format!("/v1/sandboxes/{id}/terminal"), start).0
    }

    pub(crate) fn begun(client: &Client, path: &str, mut start: Value) -> (Self, u64) {
        let mut stream = Self::open(client, path).unwrap();
        start["type"] = json!("start");
        stream.send(&start);
        let answer = stream.json();
        assert_eq!(answer["type"], "start", "{answer}");
        (stream, answer["pid"].as_u64().unwrap())
    }

    pub(crate) fn send(&mut self, message: &Value) {
        self.send_raw(Message::text(message.to_string()));
    }

    pub(crate) fn send_raw(&mut self, message: Message) {
        self.runtime.block_on(self.inner.send(message)).unwrap();
    }

    pub(crate) fn stdin(&mut self, data: &str) {
        self.send(&json!({"type": "stdin", "data": data}));
    }

    /// The next message; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let next = async { tokio::time::timeout(Duration::from_secs(60), self.inner.next()).await };
        match self.runtime.block_on(next).expect("nothing came for a minute") {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => Some(message),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.next(),
            Some(Ok(_)) | None => None,
            // A server that ends does not wait for the answer to its close.
            Some(Err(Error::Io(_))) => None,
            Some(Err(error)) => panic!("{error}"),
        }
    }

    pub(crate) fn json(&mut self) -> Value {
        serde_json::from_str(self.next().expect("it has ended").to_text().unwrap()).unwrap()
    }

    /// Reads until its output has `text`.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let mut said = Said::default();
        while !String::from_utf8_lossy(&said.stdout).contains(text) {
            let message = self.next().unwrap_or_else(|| panic!("no {text:?} in {:?}", said.stdout));
            said.take(&message);
        }
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    pub(crate) fn rest(mut self) -> Said {
        let mut said = Said::default();
        while let Some(message) = self.next() {
            assert_eq!(said.exit_code, None, "an exit is the last: {message}");
            said.take(&message);
        }
        said
    }
}

impl Said {
    pub(crate) fn take(&mut self, message: &Message) {
        let Message::Text(text) = message else {
            return self.stdout.extend_from_slice(&message.clone().into_data());
        };
        let message: Value = serde_json::from_str(text).unwrap();
        match message["type"].as_str().unwrap() {
            "stdout" => self.stdout.extend(data(&message)),
            "stderr" => self.stderr.extend(data(&message)),
            "exit" => self.exit_code = Some(message["exit_code"].as_i64().unwrap()),
            "error" => {
                assert!(!message["message"].as_str().unwrap().is_empty());
                self.errors.push(message["code"].as_str().unwrap().to_owned());
            }
            other => panic!("{other}"),
        }
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }
}

fn data(message: &Value) -> Vec<u8> {
    let data = message["data"].as_str().unwrap();
    match message["encoding"].as_str() {
        None => data.as_bytes().to_vec(),
        Some("base64") => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap(),
        other => panic!("{other:?}"),
    }
}
