//! The bytes on the wire are E2B's, to the last one: frames of both codecs, written out.

mod support;

use std::fmt::Write as _;

use support::{
    Agent,
    wire::{frame, frames},
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hex")).collect()
}

/// `printf 'a\377'; exit 3`, with stdin, in each codec.
const START_JSON: &str = r#"{"process":{"cmd":"/bin/sh","args":["-c","printf 'a\\377'; exit 3"]},"stdin":false}"#;
const START_BINARY: &str = "0a250a072f62696e2f736812022d6312167072696e74662027615c333737273b206578697420332000";

async fn start(agent: &Agent, codec: &str, message: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let kind = format!("application/connect+{codec}");
    let headers = [("content-type", kind.as_str()), ("connect-protocol-version", "1")];
    let answer = agent.call("POST", "/process.Process/Start", &headers, frame(0, message)).await;
    assert_eq!(
        (answer.status().as_u16(), answer.headers()["content-type"].to_str().expect("text")),
        (200, kind.as_str())
    );
    frames(answer.body())
}

#[tokio::test]
async fn a_stream_in_json_reads_as_e2bs() {
    let agent = Agent::start();
    let texts: Vec<_> = start(&agent, "json", START_JSON.as_bytes())
        .await
        .into_iter()
        .map(|(flags, message)| (flags, String::from_utf8(message).unwrap()))
        .collect();
    assert_eq!(texts.len(), 4, "{texts:?}");
    assert!(texts[0].1.starts_with(r#"{"event":{"start":{"pid":"#), "{texts:?}");
    // Base64 of the two bytes; and no field that E2B's clients do not know.
    assert_eq!(texts[1], (0, r#"{"event":{"data":{"stdout":"Yf8="}}}"#.to_owned()));
    let end: serde_json::Value = serde_json::from_str(&texts[2].1).unwrap();
    let expected = serde_json::json!({"event": {"end":
        {"exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3"}}});
    assert_eq!(end, expected);
    assert_eq!(texts[3], (2, "{}".to_owned()));
}

#[tokio::test]
async fn a_stream_in_binary_is_e2bs_byte_for_byte() {
    let agent = Agent::start();
    let seen = start(&agent, "proto", &unhex(START_BINARY)).await;
    assert_eq!(seen.len(), 4, "{seen:?}");
    // event { start { pid } }
    assert!(seen[0].1.len() > 6 && seen[0].1[0] == 0x0a && seen[0].1[2] == 0x0a && seen[0].1[4] == 0x08, "{seen:?}");
    // event { data { stdout: "a\xff" } }
    assert_eq!(hex(&seen[1].1), "0a0612040a0261ff");
    // event { end { exit_code: 3 (zigzag 6), exited: true, status, error } }
    let status = hex(b"exit status 3");
    assert_eq!(hex(&seen[2].1), format!("0a241a22080610011a0d{status}220d{status}"));
    assert_eq!((seen[3].0, seen[3].1.as_slice()), (2, &b"{}"[..]));
}

#[tokio::test]
async fn unary_calls_and_refusals_read_as_e2bs() {
    let agent = Agent::start();
    let json = [("content-type", "application/json"), ("connect-protocol-version", "1")];
    let list = agent.call("POST", "/process.Process/List", &json, "{}").await;
    assert_eq!((list.status().as_u16(), list.body().as_ref()), (200, &b"{}"[..]));
    let body = r#"{"process":{"pid":1073741824},"signal":"SIGNAL_SIGKILL"}"#;
    let refused = agent.call("POST", "/process.Process/SendSignal", &json, body).await;
    assert_eq!(refused.status().as_u16(), 404);
    let refusal: serde_json::Value = serde_json::from_slice(refused.body()).unwrap();
    assert_eq!(refusal, serde_json::json!({"code": "not_found", "message": "no process with pid 1073741824"}));
    let refused = start(&agent, "json", br#"{"process":{"cmd":"no-such-command"}}"#).await;
    assert_eq!((refused.len(), refused[0].0), (1, 2), "{refused:?}");
    let trailer: serde_json::Value = serde_json::from_slice(&refused[0].1).unwrap();
    assert_eq!(trailer["error"]["code"], "not_found");
}
