//! What a client and the server tell each other over a stream, in messages of JSON.

use axum::body::Bytes;
use axum::extract::ws::Message;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use wrenn_core::PtySize;

use crate::api::v1::answer::Refused;
use crate::api::v1::encoding::Encoding;

/// What a client sends. The first message is `start` or `attach`, and no other one is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(in crate::api::v1) enum FromClient<S> {
    /// What to run.
    Start(S),
    /// A process that was started before, by this client or another one.
    Attach(Attach),
    /// Input for the process. A binary message is input as well.
    Stdin(Data),
    /// The end of the input. A terminal has none: send it the character 4, which is Ctrl-D.
    CloseStdin,
    /// Kills the process, and all that it has started.
    Stop,
    /// Sends a signal to the process and its group.
    Signal {
        /// Its name, such as `TERM`, or its number.
        #[schema(example = "TERM")]
        signal: String,
    },
    /// Changes the size of a terminal.
    Resize(Size),
}

/// What the server sends. After `exit`, and after an `error` that ends the stream, it closes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(in crate::api::v1) enum FromServer {
    /// The process has begun.
    Start {
        /// Its id in the sandbox.
        pid: u32,
    },
    /// What it wrote to its standard output. That of a terminal comes in binary messages instead.
    Stdout(Data),
    /// What it wrote to its standard error.
    Stderr(Data),
    /// It has ended, and all of its output was sent.
    Exit {
        /// As a shell has it: 128 and the number of the signal that ended it.
        exit_code: i32,
    },
    /// Something was not done. The stream goes on where a message of the client was refused, and after `output_lost`
    /// and `input_unsure`; else it ends with this.
    Error {
        /// For programs.
        code: String,
        /// What to do.
        message: String,
    },
}

/// Bytes, as text where they are.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api::v1) struct Data {
    /// The text, or the bytes in base64.
    pub(super) data: String,
    /// Whether `data` is text, which it is where this is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) encoding: Option<Encoding>,
}

/// A process that runs, or that has ended in the last ten minutes.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api::v1) struct Attach {
    /// Its id in the sandbox, as `start` told it.
    #[schema(example = 1234)]
    pub(super) pid: u32,
    /// Where in its output to begin: how many bytes the client has, of its standard output and its standard error together.
    #[serde(default)]
    #[schema(default = 0)]
    pub(super) offset: u64,
}

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::api::v1) struct Size {
    /// How many characters a line has.
    #[schema(minimum = 1, maximum = 65535, example = 120)]
    pub(super) cols: u16,
    /// How many lines there are.
    #[schema(minimum = 1, maximum = 65535, example = 40)]
    pub(super) rows: u16,
}

impl Data {
    pub(super) fn into_bytes(self) -> Result<Bytes, Refused> {
        match self.encoding {
            None | Some(Encoding::Utf8) => Ok(self.data.into()),
            Some(Encoding::Base64) => match STANDARD.decode(self.data) {
                Ok(bytes) => Ok(bytes.into()),
                Err(error) => Err(Refused::bad_request(format!("`data` is no base64: {error}"))),
            },
        }
    }
}

impl TryFrom<Size> for PtySize {
    type Error = Refused;

    fn try_from(Size { cols, rows }: Size) -> Result<Self, Refused> {
        if cols == 0 || rows == 0 {
            return Err(Refused::bad_request(format!("the terminal is {cols} by {rows}: it has at least 1 of each")));
        }
        Ok(Self { columns: cols, rows })
    }
}

impl FromServer {
    pub(super) fn error(code: &str, message: impl Into<String>) -> Self {
        Self::Error { code: code.to_owned(), message: message.into() }
    }
}

impl From<Refused> for FromServer {
    fn from(refused: Refused) -> Self {
        let (code, message) = refused.into_parts();
        Self::error(code, message)
    }
}

impl From<FromServer> for Message {
    fn from(message: FromServer) -> Self {
        // It has no map with keys that are no text, which alone could not be written.
        Self::text(serde_json::to_string(&message).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IgnoredAny;
    use serde_json::json;

    use super::*;

    fn parsed(text: &serde_json::Value) -> Option<FromClient<IgnoredAny>> {
        serde_json::from_value(text.clone()).ok()
    }

    #[test]
    fn what_a_client_sends_is_read_and_what_it_must_not_is_refused() {
        assert!(matches!(parsed(&json!({"type": "stop"})), Some(FromClient::Stop)));
        let Some(FromClient::Stdin(data)) = parsed(&json!({"type": "stdin", "data": "/w==", "encoding": "base64"}))
        else {
            panic!("it is input")
        };
        assert_eq!(data.into_bytes().expect("base64"), &b"\xff"[..]);
        for bad in [
            json!({"type": "stdin"}),
            json!({"type": "stdin", "data": 1}),
            json!({"type": "stdin", "data": "a", "encoding": "hex"}),
            json!({"type": "stdin", "data": "a", "more": 1}),
            json!({"type": "resize", "cols": 70000, "rows": 1}),
            json!({"type": "signal"}),
            json!({"type": "what"}),
            json!([]),
            json!("stop"),
        ] {
            assert!(parsed(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_message_to_the_client_is_flat() {
        let text = |message: FromServer| serde_json::to_value(&message).expect("JSON");
        let data = Data { data: "a".to_owned(), encoding: None };
        assert_eq!(text(FromServer::Stdout(data)), json!({"type": "stdout", "data": "a"}));
        let data = Data { data: "/w==".to_owned(), encoding: Some(Encoding::Base64) };
        assert_eq!(text(FromServer::Stderr(data)), json!({"type": "stderr", "data": "/w==", "encoding": "base64"}));
        assert_eq!(text(FromServer::Start { pid: 7 }), json!({"type": "start", "pid": 7}));
        assert_eq!(text(FromServer::error("a", "b")), json!({"type": "error", "code": "a", "message": "b"}));
    }
}
