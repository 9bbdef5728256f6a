//! The agent's messages, as its streams carry them: in protobuf, or in JSON.

use axum::http::{HeaderMap, header};
use buffa::Message;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wrenn_envd::proto::filesystem::{WatchDirResponse, watch_dir_response};
use wrenn_envd::proto::process::process_event::data_event::Output;
use wrenn_envd::proto::process::process_event::{Event, KeepAlive};
use wrenn_envd::proto::process::process_selector::Selector;
use wrenn_envd::proto::process::{ConnectRequest, ProcessEvent, ProcessSelector, StartRequest, StartResponse};

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    Proto,
    Json,
}

/// What an event of a process means for whoever counts its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// It has this number, and its output begins here.
    Start { pid: u32, offset: u64 },
    /// So many bytes of output.
    Output(u64),
    /// Output up to here is no longer held; clients of E2B are not told.
    Lost { until: u64 },
    /// The end, as a client of E2B expects it.
    End(Bytes),
    /// Something else.
    Other,
}

impl Codec {
    /// The one of a stream's request; `None` where it is no stream of Connect's.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        match headers.get(header::CONTENT_TYPE)?.to_str().ok()? {
            "application/connect+proto" => Some(Self::Proto),
            "application/connect+json" => Some(Self::Json),
            _ => None,
        }
    }

    /// A start whose output is counted.
    pub(super) fn counted_start(self, message: &[u8]) -> Option<Bytes> {
        let mut request: StartRequest = self.read(message)?;
        request.offsets = Some(true);
        Some(self.write(&request))
    }

    /// An attachment whose output is counted.
    pub(super) fn counted_connect(self, message: &[u8]) -> Option<Bytes> {
        let mut request: ConnectRequest = self.read(message)?;
        request.offsets = Some(true);
        Some(self.write(&request))
    }

    /// The process that an attachment names by its number.
    pub(super) fn connected_pid(self, message: &[u8]) -> Option<u32> {
        let request: ConnectRequest = self.read(message)?;
        match request.process.into_option()?.selector? {
            Selector::Pid(pid) => Some(pid),
            Selector::Tag(_) => None,
        }
    }

    /// An attachment to a process whose output has come up to `offset`.
    pub(super) fn connect_from(self, pid: u32, offset: u64) -> Bytes {
        let process = ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() };
        self.write(&ConnectRequest { process: process.into(), offset: Some(offset), ..Default::default() })
    }

    /// What a message of a process's stream says; `None` where it is none.
    pub(super) fn told(self, message: &[u8]) -> Option<Told> {
        let response: StartResponse = self.read(message)?;
        Some(match response.event.into_option()?.event {
            Some(Event::Start(start)) => Told::Start { pid: start.pid, offset: start.offset.unwrap_or(0) },
            Some(Event::Data(data)) => Told::Output(match &data.output {
                Some(Output::Stdout(bytes) | Output::Stderr(bytes) | Output::Pty(bytes)) => {
                    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
                }
                None => 0,
            }),
            Some(Event::Lost(lost)) => Told::Lost { until: lost.offset.saturating_add(lost.bytes) },
            Some(Event::End(mut end)) => {
                end.offset = None;
                Told::End(self.event(Event::End(end)))
            }
            Some(Event::Keepalive(_)) | None => Told::Other,
        })
    }

    /// The start of a stream, as a client of E2B expects it.
    pub(super) fn start(self, pid: u32) -> Bytes {
        let start = wrenn_envd::proto::process::process_event::StartEvent { pid, ..Default::default() };
        self.event(start.into())
    }

    /// A sign of life of a process's stream.
    pub(super) fn keepalive(self) -> Bytes {
        self.event(KeepAlive::default().into())
    }

    /// Whether a message of a watch is its first.
    pub(super) fn is_watch_start(self, message: &[u8]) -> bool {
        let response: Option<WatchDirResponse> = self.read(message);
        matches!(response.and_then(|response| response.event), Some(watch_dir_response::Event::Start(_)))
    }

    /// A sign of life of a watch.
    pub(super) fn watch_keepalive(self) -> Bytes {
        let event = Some(watch_dir_response::KeepAlive::default().into());
        self.write(&WatchDirResponse { event, ..Default::default() })
    }

    fn event(self, event: Event) -> Bytes {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        self.write(&StartResponse { event: event.into(), ..Default::default() })
    }

    fn read<M: Message + DeserializeOwned>(self, message: &[u8]) -> Option<M> {
        match self {
            Self::Proto => M::decode_from_slice(message).ok(),
            Self::Json => serde_json::from_slice(message).ok(),
        }
    }

    fn write<M: Message + Serialize>(self, message: &M) -> Bytes {
        match self {
            Self::Proto => message.encode_to_vec().into(),
            // They are maps with keys that are texts.
            Self::Json => serde_json::to_vec(message).unwrap_or_default().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_codecs_tell_the_same() {
        let json = |text: &str| Codec::Json.told(text.as_bytes()).expect("a message");
        assert_eq!(json(r#"{"event":{"start":{"pid":7,"offset":"9"}}}"#), Told::Start { pid: 7, offset: 9 });
        assert_eq!(json(r#"{"event":{"data":{"stdout":"aGVsbG8="}}}"#), Told::Output(5));
        assert_eq!(json(r#"{"event":{"lost":{"offset":"1","bytes":"2"}}}"#), Told::Lost { until: 3 });
        let Told::End(end) =
            json(r#"{"event":{"end":{"exitCode":3,"exited":true,"status":"exit status 3","offset":"8"}}}"#)
        else {
            panic!("no end")
        };
        let end = String::from_utf8(end.to_vec()).expect("text");
        assert!(end.contains("\"exitCode\":3") && !end.contains("offset"), "{end}");
        for codec in [Codec::Proto, Codec::Json] {
            assert_eq!(codec.told(&codec.start(7)), Some(Told::Start { pid: 7, offset: 0 }));
            assert_eq!(codec.told(&codec.keepalive()), Some(Told::Other));
            let from = codec.connect_from(7, 5);
            let request: ConnectRequest = codec.read(&from).expect("a request");
            assert_eq!(request.offset, Some(5));
            let counted: ConnectRequest = codec.read(&codec.counted_connect(&from).expect("one")).expect("a request");
            assert_eq!(counted.offsets, Some(true));
            assert_eq!(codec.told(b"\xff\xff{"), None);
        }
    }
}
