//! The bytes on the wire are E2B's, to the last one: frames of both codecs, written out.

mod support;

use std::fmt::Write as _;

use support::{
    Agent,
    stream::FrameStream,
    wire::{frame, frames, number, text},
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

async fn unary(agent: &Agent, method: &str, codec: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let kind = format!("application/{codec}");
    let headers = [("content-type", kind.as_str()), ("connect-protocol-version", "1")];
    let answer = agent.call("POST", &format!("/process.Process/{method}"), &headers, body.as_ref().to_vec()).await;
    let told = answer.headers()["content-type"].to_str().expect("text");
    assert_eq!((answer.status().as_u16(), told), (200, kind.as_str()), "{method}: {answer:?}");
    answer.into_body().to_vec()
}

/// What a shell's line is started with in binary, and more fields after it.
fn shell_in_binary(line: &str, more: Vec<u8>) -> Vec<u8> {
    [text(1, [text(1, "/bin/sh"), text(2, "-c"), text(2, line)].concat()), more].concat()
}

#[tokio::test]
async fn errors_and_terminals_have_their_own_fields() {
    let agent = Agent::start();
    let json = r#"{"process":{"cmd":"/bin/sh","args":["-c","printf 'e\\377' >&2"]},"stdin":false}"#;
    let seen = start(&agent, "json", json.as_bytes()).await;
    assert_eq!(String::from_utf8_lossy(&seen[1].1), r#"{"event":{"data":{"stderr":"Zf8="}}}"#);
    let seen = start(&agent, "proto", &shell_in_binary(r"printf 'e\377' >&2", number(4, 0))).await;
    // event { data { stderr: "e\xff" } }
    assert_eq!(hex(&seen[1].1), "0a061204120265ff");

    let json =
        r#"{"process":{"cmd":"/bin/sh","args":["-c","stty size | tr -d '\n'"]},"pty":{"size":{"cols":101,"rows":42}}}"#;
    let seen = start(&agent, "json", json.as_bytes()).await;
    // "42 101"
    assert_eq!(String::from_utf8_lossy(&seen[1].1), r#"{"event":{"data":{"pty":"NDIgMTAx"}}}"#);
    let size = text(2, text(1, [number(1, 101), number(2, 42)].concat()));
    let seen = start(&agent, "proto", &shell_in_binary("stty size | tr -d '\n'", size)).await;
    // event { data { pty: "42 101" } }
    assert_eq!(hex(&seen[1].1), format!("0a0a12081a06{}", hex(b"42 101")));
}

#[tokio::test]
async fn an_end_without_error_and_one_by_a_signal_read_as_e2bs() {
    let agent = Agent::start();
    let seen = start(&agent, "proto", &shell_in_binary("exit 0", number(4, 0))).await;
    // event { end { exited: true, status } }
    assert_eq!(hex(&seen[1].1), format!("0a131a1110011a0d{}", hex(b"exit status 0")));
    let seen = start(&agent, "proto", &shell_in_binary("kill -9 $$", number(4, 0))).await;
    // event { end { exit_code: -1 (zigzag 1), status, error } }
    let status = hex(b"signal: killed");
    assert_eq!(hex(&seen[1].1), format!("0a241a2208011a0e{status}220e{status}"));
    let seen =
        start(&agent, "json", br#"{"process":{"cmd":"/bin/sh","args":["-c","kill -9 $$"]},"stdin":false}"#).await;
    let end: serde_json::Value = serde_json::from_slice(&seen[1].1).unwrap();
    let expected = serde_json::json!({"event": {"end":
        {"exitCode": -1, "status": "signal: killed", "error": "signal: killed"}}});
    assert_eq!(end, expected);
}

#[tokio::test]
async fn a_sign_of_life_is_a_message_without_fields() {
    let agent = Agent::start();
    let often = [("keepalive-ping-interval", "1")];
    let route = "/process.Process/Start";
    let json = r#"{"process":{"cmd":"sleep","args":["5"]},"tag":"json"}"#;
    let mut stream = FrameStream::open(&agent, route, "json", &often, json).await;
    let binary = [text(1, [text(1, "sleep"), text(2, "5")].concat()), text(3, "binary")].concat();
    let mut other = FrameStream::open(&agent, route, "proto", &often, binary).await;
    stream.message().await;
    other.message().await;
    let route = "/process.Process/Connect";
    let mut attached = FrameStream::open(&agent, route, "json", &often, r#"{"process":{"tag":"json"}}"#).await;
    attached.message().await;
    for stream in [&mut stream, &mut attached] {
        assert_eq!(stream.text().await, r#"{"event":{"keepalive":{}}}"#);
    }
    assert_eq!(hex(&other.message().await), "0a022200");
}

/// `cat` with all that a process can have, in each codec.
#[tokio::test]
async fn every_other_call_on_a_process_reads_as_e2bs() {
    let agent = Agent::start();
    let json = r#"{"process":{"cmd":"cat","args":["-u"],"envs":{"A":"1"},"cwd":"/usr"},"tag":"t"}"#;
    let mut started = FrameStream::open(&agent, "/process.Process/Start", "json", &[], json).await;
    let told: serde_json::Value = serde_json::from_str(&started.text().await).unwrap();
    let pid = told["event"]["start"]["pid"].as_u64().unwrap();

    let listed: serde_json::Value = serde_json::from_slice(&unary(&agent, "List", "json", "{}").await).unwrap();
    let config = serde_json::json!({"cmd": "cat", "args": ["-u"], "envs": {"A": "1"}, "cwd": "/usr"});
    assert_eq!(listed, serde_json::json!({"processes": [{"config": config, "pid": pid, "tag": "t"}]}));
    let envs = [text(1, "A"), text(2, "1")].concat();
    let config = [text(1, "cat"), text(2, "-u"), text(3, envs), text(4, "/usr")].concat();
    let process = [text(1, config), number(2, pid), text(3, "t")].concat();
    assert_eq!(unary(&agent, "List", "proto", "").await, text(1, process));

    let by_tag = text(1, text(2, "t"));
    let route = "/process.Process/Connect";
    let mut as_json = FrameStream::open(&agent, route, "json", &[], r#"{"process":{"tag":"t"}}"#).await;
    let mut as_binary = FrameStream::open(&agent, route, "proto", &[], text(1, number(1, pid))).await;
    assert_eq!(as_json.text().await, format!(r#"{{"event":{{"start":{{"pid":{pid}}}}}}}"#));
    assert_eq!(as_binary.message().await, text(1, text(1, number(1, pid))));

    let input = r#"{"process":{"tag":"t"},"input":{"stdin":"Yf8="}}"#;
    assert_eq!(unary(&agent, "SendInput", "json", input).await, b"{}");
    assert_eq!(as_json.text().await, r#"{"event":{"data":{"stdout":"Yf8="}}}"#);
    assert_eq!(hex(&as_binary.message().await), "0a0612040a0261ff");
    assert_eq!(unary(&agent, "SendInput", "proto", [by_tag.clone(), text(2, text(1, "b"))].concat()).await, b"");
    assert_eq!(as_json.text().await, r#"{"event":{"data":{"stdout":"Yg=="}}}"#);

    let route = "/process.Process/StreamInput";
    let frames_of = |messages: Vec<Vec<u8>>| messages.iter().flat_map(|message| frame(0, message)).collect::<Vec<_>>();
    let begin = br#"{"start":{"process":{"tag":"t"}}}"#.to_vec();
    let body =
        frames_of(vec![begin, br#"{"keepalive":{}}"#.to_vec(), br#"{"data":{"input":{"stdin":"Yw=="}}}"#.to_vec()]);
    let answer = agent.call("POST", route, &[("content-type", "application/connect+json")], body).await;
    assert_eq!(frames(answer.body()), [(0, b"{}".to_vec()), (2, b"{}".to_vec())]);
    assert_eq!(as_json.text().await, r#"{"event":{"data":{"stdout":"Yw=="}}}"#);
    let body = frames_of(vec![text(1, by_tag.clone()), text(3, ""), text(2, text(2, text(1, "d")))]);
    let answer = agent.call("POST", route, &[("content-type", "application/connect+proto")], body).await;
    assert_eq!(frames(answer.body()), [(0, Vec::new()), (2, b"{}".to_vec())]);
    assert_eq!(as_json.text().await, r#"{"event":{"data":{"stdout":"ZA=="}}}"#);

    assert_eq!(unary(&agent, "CloseStdin", "json", r#"{"process":{"tag":"t"}}"#).await, b"{}");
    let end = as_json.text().await;
    assert!(end.contains(r#""status":"exit status 0""#), "{end}");
}

#[tokio::test]
async fn a_terminal_is_resized_and_a_process_signalled_by_e2bs_numbers() {
    let agent = Agent::start();
    let route = "/process.Process/Start";
    let json = r#"{"process":{"cmd":"cat"},"pty":{"size":{"cols":80,"rows":24}},"tag":"t"}"#;
    let mut started = FrameStream::open(&agent, route, "json", &[], json).await;
    started.message().await;
    let update = r#"{"process":{"tag":"t"},"pty":{"size":{"cols":90,"rows":30}}}"#;
    assert_eq!(unary(&agent, "Update", "json", update).await, b"{}");
    let size = text(2, text(1, [number(1, 91), number(2, 31)].concat()));
    assert_eq!(unary(&agent, "Update", "proto", [text(1, text(2, "t")), size].concat()).await, b"");
    // The terminal shows what is typed in.
    let typed = r#"{"process":{"tag":"t"},"input":{"pty":"eA=="}}"#;
    assert_eq!(unary(&agent, "SendInput", "json", typed).await, b"{}");
    assert_eq!(started.text().await, r#"{"event":{"data":{"pty":"eA=="}}}"#);
    // SIGTERM.
    assert_eq!(unary(&agent, "SendSignal", "proto", [text(1, text(2, "t")), number(2, 15)].concat()).await, b"");
    let end = started.text().await;
    assert!(end.contains("signal: terminated"), "{end}");
}
